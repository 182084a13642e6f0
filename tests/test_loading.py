"""Loading: what loads, in 4 bit too, and the one clear line for what does not."""

import ast
import json
import shutil
import socket
import time
from pathlib import Path

import pytest
import torch

from medrefl_utils.core import MedReflError, resolve_model
from medrefl_utils.models import load_model, load_tokenizer, model_key


@pytest.mark.parametrize("model", ["no-such/model-anywhere", "./nowhere", "/nowhere/at/all", "just-a-name", "a/b/c"])
def test_a_model_that_is_nowhere_is_one_line_within_five_seconds(model):
    start = time.monotonic()
    with pytest.raises(MedReflError) as error:
        load_model(model)
    assert time.monotonic() - start < 5
    assert str(error.value).startswith(f"model {model}: no such folder") and "\n" not in str(error.value)


@pytest.mark.parametrize("replies", [False, True])
def test_a_hub_that_does_not_answer_is_one_line_within_five_seconds(replies, monkeypatch):
    """A real socket that takes the connection and says nothing, and a port where nobody listens."""
    import huggingface_hub.constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not replies:
            server.close()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        start = time.monotonic()
        with pytest.raises(MedReflError, match=r"^model owner/name: no such folder, and not available on the hub"):
            resolve_model("owner/name")
        assert time.monotonic() - start < 5


def test_nf4_holds_the_linear_layers_in_4_bit_and_stays_near(tiny_student):
    whole, small = load_model(tiny_student), load_model(tiny_student, "nf4")
    layer = small.model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8 and layer.weight.quant_state.nested
    assert not small.training and layer.support_avx512bf16_for_cpu is False
    ids = torch.arange(300, 340)[None]
    with torch.inference_mode():
        a, b = whole(ids).logits, small(ids).logits
    assert 0 < (a - b).abs().mean() < 0.5 * a.std()


def test_unknown_quantization_is_refused(tiny_student):
    with pytest.raises(MedReflError, match="quantization is 'int3', expected one of none, nf4"):
        load_model(tiny_student, "int3")


@pytest.fixture
def folder(tiny_student, tmp_path):
    return shutil.copytree(tiny_student, tmp_path / "model")


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(MedReflError, match=r"has no config\.json"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_loading_looks_at_the_folder_first(folder, load):
    """The lines of ``check_model_folder``, which tests/test_refusals.py has one by one."""
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(MedReflError, match=r"^model \S+: model\.safetensors cannot be read \(.*incomplete"):
        load(str(folder))


def test_a_template_that_does_not_render_a_turn_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only for\\nsystems') }}")
    with pytest.raises(MedReflError, match=r"its chat template fails: only for$"):
        load_tokenizer(str(folder))


def test_weights_that_lack_a_tensor_are_refused_and_not_drawn_at_random(folder):
    """Right sizes, other names, as an architecture of the same shape has them: only loading tells."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole.replace(b".self_attn.q_proj.", b".self_attn.w_proj."))
    with pytest.raises(
        MedReflError, match=r"its weights lack 4 of the tensors of a LlamaForCausalLM, such as model\.l"
    ):
        load_model(str(folder))


@pytest.mark.parametrize("known", [True, False])
def test_code_that_lies_in_the_folder_is_never_run(folder, known, monkeypatch, tmp_path):
    """A type that transformers knows loads with transformers' own class; any other is refused."""
    monkeypatch.chdir(tmp_path)
    (folder / "own.py").write_text("open('hacked', 'w')\nclass Own: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(config | ({} if known else {"model_type": "own"})))
    if known:
        assert type(load_model(str(folder))).__module__.startswith("transformers.") and load_tokenizer(str(folder))
    else:
        for load in (load_model, load_tokenizer):
            with pytest.raises(MedReflError, match=r"'own' is none that transformers knows; the code beside it"):
                load(str(folder))
    assert not (tmp_path / "hacked").exists()


def test_no_code_of_a_model_is_ever_trusted():
    """Every call that could run a model's own code says no, as transformers asks at the terminal where none is told."""
    package = Path(load_model.__code__.co_filename).parent
    loads = 0
    for file in package.rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            told = {word.arg: word.value for word in call.keywords}
            assert "trust_remote_code" not in told or told["trust_remote_code"].value is False, file.name
            called = ast.unparse(call.func)
            assert not called.startswith(("pickle.", "torch.load", "joblib.", "dill.")), file.name
            if called.startswith("Auto") and called.endswith("from_pretrained"):
                assert "trust_remote_code" in told, f"{file.name}: {called}"
                loads += 1
    assert loads >= 4


def test_a_tokenizer_without_a_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(MedReflError, match="has no chat template"):
        load_tokenizer(str(folder))


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(
        MedReflError, match=r"pickled weights \(pytorch_model\.bin\), which can run code, and are never read"
    ):
        load_model(str(folder))


def test_a_folder_without_an_adapter_is_refused(tiny_student, tmp_path):
    with pytest.raises(MedReflError, match=r"no adapter_config\.json there"):
        load_model(tiny_student, adapter=tmp_path)


def test_the_key_changes_with_content_and_quantization(tiny_student, folder):
    assert model_key(tiny_student, "none") == model_key(str(folder), "none") != model_key(str(folder), "nf4")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert model_key(tiny_student, "none") != model_key(str(folder), "none")


def test_the_student_is_small_and_reads_any_text(tiny_student):
    tokenizer = load_tokenizer(tiny_student)
    text = "Ödem, 37°C — “naïve” 患者 \t\x00 🩺 <|end"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    model = load_model(tiny_student)
    assert model.config.model_type == "llama" and model.num_parameters() <= 5_000_000
