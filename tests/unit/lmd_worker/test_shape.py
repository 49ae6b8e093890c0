"""What is read of a model directory before anything is loaded."""

import pytest

from lmd_worker.errors import ModelRefusedError
from lmd_worker.shape import ModelShape


def test_sizes_are_read_from_config_and_headers(make_model_directory):
    shape = ModelShape.read(make_model_directory())
    assert (shape.model_type, shape.heads, shape.key_value_heads, shape.layers, shape.head_dim) == ("llama", 9, 3, 30, 64)
    assert (shape.hidden_size, shape.intermediate_size, shape.max_positions, shape.vocabulary_size) == (576, 1536, 8192, 49152)
    assert (shape.parameters, shape.weight_bytes, shape.weight_files) == (40, 160, ("model.safetensors",))
    assert (shape.experts, shape.quantization, shape.encoder_decoder) == (0, None, False)


def test_embeddings_are_tied_when_no_output_head_is_stored_and_nothing_says_otherwise(make_model_directory):
    assert ModelShape.read(make_model_directory()).tied_embeddings
    assert not ModelShape.read(make_model_directory(tensors={"lm_head.weight": (4, 8)})).tied_embeddings
    assert ModelShape.read(make_model_directory(tensors={"lm_head.weight": (4, 8)}, tie_word_embeddings=True)).tied_embeddings


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(
            {"model_type": "gptj", "n_embd": 256, "n_layer": 2, "n_head": 8, "n_positions": 2048, "n_inner": None, "vocab_size": 9},
            (8, 8, 32, 1024, 2048),
            id="gptj",
        ),
        pytest.param(
            {"model_type": "mpt", "d_model": 256, "n_layers": 2, "n_heads": 8, "max_seq_len": 512, "vocab_size": 9},
            (8, 8, 32, 1024, 512),
            id="mpt",
        ),
        pytest.param(
            {"model_type": "opt", "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9},
            (4, 4, 16, 96, None),
            id="opt",
        ),
        pytest.param(
            {
                "model_type": "falcon",
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_kv_heads": 4,
                "vocab_size": 9,
            },
            (4, 1, 16, 256, None),
            id="old falcon has one key-value head whatever num_kv_heads says",
        ),
        pytest.param(
            {
                "model_type": "gemma3",
                "text_config": {
                    "model_type": "gemma3_text",
                    "hidden_size": 64,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "head_dim": 32,
                    "intermediate_size": 128,
                    "vocab_size": 9,
                },
            },
            (4, 2, 32, 128, None),
            id="nested text_config",
        ),
    ],
)
def test_families_name_their_sizes_differently(make_model_directory, config, expected):
    shape = ModelShape.read(make_model_directory(config))
    assert (shape.heads, shape.key_value_heads, shape.head_dim, shape.intermediate_size, shape.max_positions) == expected


def test_a_missing_directory_is_refused_in_words(tmp_path):
    with pytest.raises(ModelRefusedError, match="no such directory"):
        ModelShape.read(tmp_path / "none")


def test_a_directory_without_config_is_refused_in_words(tmp_path):
    with pytest.raises(ModelRefusedError, match=r"there is no config\.json"):
        ModelShape.read(tmp_path)


@pytest.mark.parametrize("text", ['{"model_type": ', "[]"])
def test_a_broken_config_is_refused_in_words(make_model_directory, text):
    directory = make_model_directory()
    (directory / "config.json").write_text(text)
    with pytest.raises(ModelRefusedError, match=r"config\.json (cannot be read|is not a JSON object)"):
        ModelShape.read(directory)


def test_pickles_are_refused_and_named(make_model_directory):
    directory = make_model_directory()
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelRefusedError, match=r"only as pickles \(pytorch_model\.bin\), which can run code when read"):
        ModelShape.read(directory)


def test_no_weights_at_all_are_refused(make_model_directory):
    directory = make_model_directory()
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelRefusedError, match="there are no safetensors files"):
        ModelShape.read(directory)


def test_a_file_cut_short_is_refused_with_its_sizes(make_model_directory):
    file = make_model_directory() / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ModelRefusedError, match=f"cut short: {len(whole) - 1} of {len(whole)} bytes"):
        ModelShape.read(file.parent)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"version https://git-lfs.github.com/spec/v1"])
def test_what_is_no_safetensors_file_is_refused(make_model_directory, data):
    file = make_model_directory() / "model.safetensors"
    file.write_bytes(data)
    with pytest.raises(ModelRefusedError, match="is not a safetensors file"):
        ModelShape.read(file.parent)


def test_missing_shards_are_counted_and_the_first_is_named(make_model_directory):
    directory = make_model_directory()
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors", "b": "part-2.safetensors"}}')
    with pytest.raises(ModelRefusedError, match=r"1 of 2 weight files are missing, the first is part-2\.safetensors"):
        ModelShape.read(directory)


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        pytest.param(131072, None, 8192, id="nothing asked of a long model gives 8192"),
        pytest.param(2048, None, 2048, id="nothing asked of a short model gives its limit"),
        pytest.param(131072, 100000, 100000, id="what is asked is given"),
        pytest.param(None, None, 2048, id="a model without limit gets 2048"),
        pytest.param(None, 9000, 9000, id="a model without limit gets what is asked"),
    ],
)
def test_context_tokens(make_model_directory, limit, asked, expected):
    shape = ModelShape.read(make_model_directory(max_position_embeddings=limit))
    assert shape.context_tokens(asked) == expected


def test_more_context_than_positions_is_refused_with_both_numbers(make_model_directory):
    with pytest.raises(ModelRefusedError, match=r"contextTokens is 8193, but the model at .* has 8192 positions .* Ask for at most 8192\."):
        ModelShape.read(make_model_directory()).context_tokens(8193)
