from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from support.repository import ROOT
from tonnage_operator.api.modelweights import ModelWeightsSpec

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLES = sorted((ROOT / "examples" / "modelweights").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_names_only_fields_that_exist(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] != "ModelWeights":
            continue
        spec = ModelWeightsSpec.model_validate(document["spec"])
        written = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert written == document["spec"], "a field was dropped or changed"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
