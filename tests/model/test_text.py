"""The real model's tokenizer and its conversion."""

import json
import shutil

import pytest

from lmd_worker.engine.tokenizer import ModelText
from lmd_worker.errors import BadRequestError, ModelRefusedError

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def text(smollm2):
    return ModelText(smollm2)


def test_a_chat_is_framed_by_single_tokens_and_ends_where_the_assistant_speaks(text):
    tokens = text.encode_chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])
    assert (
        text._tokenizer.decode(tokens) == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokens.count(1) == 3
    assert tokens.count(2) == 2


def test_a_prompt_comes_back_and_special_tokens_do_not(text):
    words = "Grüße, 世界! def f(x):\n    return x"
    assert text.decode(text.encode(words)) == words
    assert text.decode([*text.encode("Paris"), 2]) == "Paris"


def test_incomplete_utf8_decodes_to_the_replacement_character(text):
    tokens = text.encode("世")
    assert len(tokens) > 1
    assert text.decode(tokens[:-1]).endswith("�")


def test_the_stop_tokens_are_the_models(text):
    assert text.stop_token_ids == {2}


def test_stop_tokens_of_all_files_are_joined(smollm2, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(smollm2 / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    bare = ModelText(tmp_path)
    assert bare.stop_token_ids == {0, 2, 7}
    with pytest.raises(BadRequestError, match="no chat template"):
        bare.encode_chat([{"role": "user", "content": "Hi"}])


def test_a_template_that_refuses_is_a_bad_request(text):
    with pytest.raises(BadRequestError, match="chat template refuses"):
        text.encode_chat([{"role": "user"}])


def test_a_directory_without_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelRefusedError, match="transformers cannot load the tokenizer"):
        ModelText(tmp_path)


def test_the_converted_model_has_no_memory_of_its_source(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert {path.suffix for path in smollm2.iterdir()} <= {".json", ".jinja", ".safetensors"}
