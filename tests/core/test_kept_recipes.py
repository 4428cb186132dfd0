"""A recipe beside a result gives way to the next; a person's file does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerif.core.files import keep_recipe


class TestRecipes:
    TEXT = "command: prune\nsparsity: 0.5\n"

    def test_ours_gives_way(self, tmp_path: Path) -> None:
        path = tmp_path / "recipe.yaml"
        keep_recipe(path, self.TEXT)
        keep_recipe(path, self.TEXT.replace("5", "6"))
        assert path.read_text() == self.TEXT.replace("5", "6")

    @pytest.mark.parametrize(
        "text",
        [
            "command: prune  # why\nsparsity: 0.5\n",
            "notes",
            "flour: 500 g\n",
            "[1",
            "&a [*a]",
            "\xff",
            "",
        ],
    )
    def test_a_person_s_stays(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="latin-1")
        keep_recipe(path, self.TEXT)
        assert path.read_text(encoding="latin-1") == text
