"""The published tokenizer, without a bundle."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import cast

from sd2rt.engines.bundle.manifest import Tokenizer as Config
from sd2rt.engines.bundle.reader import Bundle
from sd2rt.engines.bundle.schema import File
from sd2rt.engines.demo.files import TOKENIZER
from sd2rt.runtime.prompts.tokenizer import Tokenizer

BOS, EOS, PAD = 49406, 49407, 0


def published_tokenizer() -> Tokenizer:
    assert json.loads(TOKENIZER.read_text())["model"]["vocab"]["cat</w>"] == 2368
    config = Config(
        file=File(path=TOKENIZER.name, size=1, sha256="0" * 64), max_length=77, bos=BOS, eos=EOS, pad=PAD
    )
    bundle = SimpleNamespace(
        manifest=SimpleNamespace(tokenizer=config), load=lambda files, opening: opening(TOKENIZER.parent)
    )
    return Tokenizer(cast(Bundle, bundle))
