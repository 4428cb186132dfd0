"""The manifest beside the weights of a folder that layerif has written."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from layerif.core.record import JsonArtifact
from layerif.errors import InputError

MANIFEST_FILE = "layerif_manifest.json"


class FolderManifest(JsonArtifact):
    """What every manifest shares.

    Attributes:
        holds: what is in the folder, in words.
        written_by: the command that writes it.
    """

    holds: ClassVar[str]
    written_by: ClassVar[str]

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """The manifest of a folder.

        Raises:
            InputError: there is none, or it is not valid.
        """
        if not (folder / MANIFEST_FILE).is_file():
            raise InputError(
                f"no {cls.holds} in {folder}: {MANIFEST_FILE}, which `{cls.written_by}` writes "
                "beside the weights, does not exist"
            )
        return cls.load(folder / MANIFEST_FILE)
