"""The corpus of ``tensors_corpus`` as a fixture, written once a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.tensors_corpus import CorpusFile


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CorpusFile]:
    """Files of the corpus by name."""
    from support.tensors_corpus import tensorizer_corpus

    return {file.name: file for file in tensorizer_corpus(tmp_path_factory.mktemp("corpus"))}
