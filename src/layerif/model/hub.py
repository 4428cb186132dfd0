"""Models of the Hugging Face hub: asked for once, and taken from the local cache without it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from layerif.core.aliases import NAMES
from layerif.errors import InputError
from layerif.model.causes import cause_of

# The hub's client tries again for half a minute: too long for a mistyped folder.
TIMEOUT = 10.0
FORMS = (
    f"a model is a hub id, a folder written by save_pretrained, a .gguf file or an alias ({NAMES})"
)


def hub_source(name: str) -> str:
    """What transformers opens for a model's id: the id, or the folder of its copy in the cache.

    One request, without retries, tells whether the hub has the model. The copy in the local cache
    is used where the hub cannot be reached.

    Raises:
        InputError: it is no id, the hub has no such model, or it cannot be reached and no copy is
            there.
    """
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise InputError(
            f"no model folder at {Path(name).expanduser()}, and {name!r} is not the id of a model "
            "on the Hugging Face hub"
        ) from None
    neither = f"no folder {name!r} is here, and the Hugging Face hub"
    try:
        get_hf_file_metadata(hf_hub_url(name, constants.CONFIG_NAME), timeout=TIMEOUT)
    except GatedRepoError:
        raise InputError(
            f"the Hugging Face hub opens {name!r} only to those who have accepted its terms: "
            "accept them on the model's page, and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{neither} has no model of that name that it shows to you; {FORMS}"
        ) from None
    except EntryNotFoundError:
        raise InputError(
            f"{name!r} on the Hugging Face hub has no {constants.CONFIG_NAME}, so it is not a "
            "model that transformers opens; for a GGUF file, download it and name the file"
        ) from None
    except Exception as error:
        # Offline, or a hub that does not answer: the client's own errors differ by its version.
        if (folder := cached_folder(name)) is not None:
            return str(folder)
        raise InputError(
            f"{neither} cannot be reached ({cause_of(error)}), nor is a copy of that name in its "
            f"local cache; {FORMS}"
        ) from None
    return name


def cached_folder(name: str) -> Path | None:
    """Where the local cache of the hub has the files of a model."""
    config = try_to_load_from_cache(name, constants.CONFIG_NAME)
    return Path(config).parent if isinstance(config, str) else None


def file_of(name: str, file: str) -> Path | None:
    """One file of a model that is a folder or on the hub; None where it has none, or none is seen.

    As for `hub_source`, the hub is asked once, without retries, where the local cache lacks it.
    """
    if (folder := Path(name)).is_dir():
        return folder / file if (folder / file).is_file() else None
    try:
        validate_repo_id(name)
        if (kept := try_to_load_from_cache(name, file)) is not None:
            return Path(kept) if isinstance(kept, str) else None  # or known not to exist
        get_hf_file_metadata(hf_hub_url(name, file), timeout=TIMEOUT)
        return Path(hf_hub_download(name, file))
    except Exception:  # the client's own errors differ by its version
        return None
