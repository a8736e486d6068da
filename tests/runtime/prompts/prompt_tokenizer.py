"""The published tokenizer without a bundle around it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from sd2rt.engines.bundle.manifest import Tokenizer as Config
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import File
from sd2rt.runtime.prompts.tokenizer import Tokenizer

BOS, EOS, PAD = 49406, 49407, 0


def published_tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("sd2rt.export")
    assert spec is not None
    [folder] = cast(Any, spec.submodule_search_locations)
    path = Path(folder) / "tokenizer" / "tokenizer.json"
    assert json.loads(path.read_text())["model"]["vocab"]["cat</w>"] == 2368
    config = Config(
        file=File(path="tokenizer.json", size=1, sha256="0" * 64), max_length=77, bos=BOS, eos=EOS, pad=PAD
    )
    bundle = SimpleNamespace(manifest=SimpleNamespace(tokenizer=config), file=lambda name: path)
    return Tokenizer(cast(Bundle, bundle))
