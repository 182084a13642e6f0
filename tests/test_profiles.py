"""A profile's errors stop the run before anything starts, and name file, section and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrefl_utils.core import MedReflError
from medrefl_utils.runs import STAGES, Parameter, Profile, load_profile, notebook_parameters
from medrefl_utils.runs.profile_yaml import parse
from medrefl_utils.runs.profiles import matching_names
from medrefl_utils.runs.renamed_parameters import RENAMED
from medrefl_utils.runs.stages import CONTINUES, FOLLOWS
from tests import toy
from tests.conftest import ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return toy.checkout(tmp_path)


def load(root: Path, content: object = None, *overrides: str) -> dict:
    path = root / "params/toy.yaml"
    if content is not None:
        toy.profile(root, content)
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in toy.STAGES}
    return load_profile(path.relative_to(root), notebooks, root=root, overrides=overrides)


@pytest.fixture(autouse=True)
def _here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def test_defaults_shared_and_own_values_are_resolved(root: Path) -> None:
    content = {"shared": {"run": "x", "seed": 3}, "01_count": {"n": 9, "rate": 2}, "02_double": {"seed": 4}}
    profile = load(root, content)
    assert profile.run == "x"
    assert profile.parameters == {
        "01_count": {"run": "runs/x", "seed": 3, "n": 9, "rate": 2.0, "names": ["a", "b"], "data": ""},
        "02_double": {"run": "runs/x", "seed": 4, "loud": False},
        "03_tell": {"run": "runs/x"},
    }


def test_run_is_named_after_the_file_when_the_profile_does_not_say(root: Path) -> None:
    assert load(root, {"01_count": {"n": 1}}).run == "toy"


def test_set_wins_over_the_file(root: Path) -> None:
    profile = load(root, None, "shared.seed=8", "01_count.names=[x, 'y: z']", "01_count.rate=1e-4", "shared.run=other")
    assert profile.parameters["01_count"] == {
        "run": "runs/other", "seed": 8, "n": 4, "rate": 1e-4, "names": ["x", "y: z"], "data": "",
    }  # fmt: skip


def test_an_exponent_without_a_point_is_a_number(root: Path) -> None:
    assert load(root, "01_count:\n  rate: 5e-7\n").parameters["01_count"]["rate"] == 5e-7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found nothing, expected sections"),
        ("- 1\n- 2\n", "found list, expected sections"),
        ("just text", "found str, expected sections"),
        ("a: [", "is not YAML we can use"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd' is not allowed",
        ),
        ("shared:\n  seed: 1\n  seed: 2\n", "the key 'seed' appears twice (line 2)"),
        ("shared: {}\nshared: {}\n", "the key 'shared' appears twice (line 1)"),
        ("1: {}\n", "the section 1 is a int, expected a name"),
        ("shared: 3\n", "section 'shared' holds 3, expected key: value lines"),
        ("shared:\n  1: 2\n", "section 'shared': a key is not a name: [1]"),
        ("01_cont: {}\n", "unknown section '01_cont' (did you mean '01_count'?)"),
        ("zzz: {}\n", "unknown section 'zzz', expected one of 01_count, 02_double, 03_tell, shared"),
        ("01_count:\n  nmes: [a]\n", "section '01_count': unknown key 'nmes' (did you mean 'names'?)"),
        (
            "01_count:\n  loud: true\n",
            "section '01_count': unknown key 'loud', expected one of data, n, names, rate, seed",
        ),
        ("shared:\n  sed: 1\n", "section 'shared': no notebook has the parameter 'sed' (did you mean 'seed'?)"),
        ("01_count:\n  run: x\n", "section '01_count': 'run' is set once, as shared.run"),
        ("01_count:\n  n: 2.0\n", "section '01_count': key 'n' (for 01_count): found 2.0 (float), expected int"),
        ("01_count:\n  n: true\n", "key 'n' (for 01_count): found True (bool), expected int"),
        ("01_count:\n  n: '3'\n", "found '3' (str), expected int"),
        ("01_count:\n  n:\n", "found nothing, expected int"),
        ("01_count:\n  rate: yes\n", "found True (bool), expected float"),
        ("01_count:\n  names: a\n", "found 'a' (str), expected list[str]"),
        ("01_count:\n  names: [1]\n", "found [1] (list), expected list[str]"),
        ("shared:\n  seed: a\n", "section 'shared': key 'seed' (for 01_count): found 'a' (str), expected int"),
        ("02_double:\n  loud: 1\n", "found 1 (int), expected bool"),
        ("01_count:\n  data: none.jsonl\n", "section '01_count': key 'data': no such file or folder: none.jsonl"),
        ("01_count:\n  data: ./none\n", "section '01_count': key 'data': no such file or folder: ./none"),
        ("01_count:\n  names: [ok, /none/here]\n", "key 'names': no such file or folder: /none/here"),
        ("shared:\n  run: ../x\n", "section 'shared': key 'run': found '../x', expected the run's name"),
        ("shared:\n  run: 5\n", "section 'shared': key 'run': found 5, expected the run's name"),
    ],
)
def test_a_wrong_profile_is_one_line_that_names_the_place(root: Path, content: str, message: str) -> None:
    with pytest.raises(MedReflError) as caught:
        load(root, content)
    text = str(caught.value)
    assert text.startswith("params/toy.yaml: ") and "\n" not in text
    assert message in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # YAML 1.1 reads these as 8, 64, 90, 16, 3, 90.5: a person reads something else.
        ("shared:\n  seed: 010\n", "line 2: seed: 010 is 8 in YAML (octal): write 10 or 8 for a number, or '010' in"),
        ("01_count:\n  n: 0100\n", "line 2: n: 0100 is 64 in YAML (octal): write 100 or 64 for a number"),
        ("01_count:\n  n: -010\n", "line 2: n: -010 is -8 in YAML (octal): write -10 or -8 for a number"),
        ("01_count:\n  n: 00\n", "line 2: n: 00 is 0 in YAML (octal): write 0 for a number"),
        ("01_count:\n  n: 1:30\n", "line 2: n: 1:30 is 90 in YAML (base 60): write 90 for a number, or '1:30' in"),
        ("01_count:\n  rate: 1:30.5\n", "line 2: rate: 1:30.5 is 90.5 in YAML (base 60): write 90.5"),
        ("01_count:\n  n: 0x10\n", "line 2: n: 0x10 is 16 in YAML (hexadecimal): write 16 for a number"),
        ("01_count:\n  n: 0b11\n", "line 2: n: 0b11 is 3 in YAML (binary): write 3 for a number"),
        ("01_count:\n  n: 0x_\n", "line 2: n: 0x_ is not a number: write decimals"),
        ("01_count:\n  n: 1__0\n", "line 2: n: 1__0 is 10 in YAML: write 10 for a number"),
        ("01_count:\n  rate: 010.5\n", "line 2: rate: 010.5 is 10.5 in YAML: write 10.5 for a number"),
        ("01_count:\n  names: [a, 1:30]\n", "line 2: names: 1:30 is 90 in YAML (base 60): write 90"),
        (
            "shared:\n  run: 010\n",
            "line 2: run: 010 is 8 in YAML (octal): write 10 or 8 for a number, or '010' in quotes",
        ),
        # These are text in YAML 1.1.
        ("01_count:\n  n: 08\n", "found '08' (str), expected int: write 8"),
        ("01_count:\n  n: 0o10\n", "found '0o10' (str), expected int: write 8"),
        ("01_count:\n  n: 1,000\n", "found '1,000' (str), expected int: write 1000"),
        ("01_count:\n  n: 1e3\n", "found 1000.0 (float), expected int: write 1000"),
        ("01_count:\n  rate: '0.5'\n", "found '0.5' (str), expected float: write 0.5"),
        # Words that YAML 1.1 reads as something else than text.
        ("01_count:\n  data: off\n", "expected str: YAML reads off on line 2 as False, so write 'off' in quotes"),
        ("01_count:\n  data: 2024-01-31\n", "YAML reads 2024-01-31 on line 2 as 2024-01-31, so write '2024-01-31' in"),
        ("01_count:\n  data: 1e3\n", "YAML reads 1e3 on line 2 as 1000.0, so write '1e3' in quotes"),
        (
            "01_count:\n  names: [a, no]\n",
            "expected list[str]: YAML reads no on line 2 as False, so write 'no' in quotes",
        ),
        ("shared:\n  run: on\n", "'_', '-': YAML reads on on line 2 as True, so write 'on' in quotes"),
        ("02_double:\n  loud: '1'\n", "found '1' (str), expected bool, which is true or false"),
        ("01_count:\n  names: a, b\n", "found 'a, b' (str), expected list[str], such as [a,b]"),
    ],
)
def test_a_value_that_yaml_reads_otherwise_is_refused_with_what_to_write(
    root: Path, content: str, message: str
) -> None:
    with pytest.raises(MedReflError) as caught:
        load(root, content)
    text = str(caught.value)
    assert text.startswith("params/toy.yaml: ") and "\n" not in text
    assert message in text


def test_decimal_numbers_are_read_as_they_look() -> None:
    for text, value in {"1_000": 1000, "+5": 5, "-1": -1, "0": 0}.items():
        assert parse(text).value == value
    for text, value in {"1e-4": 1e-4, ".5": 0.5, "1.": 1.0, "-1.5e+3": -1500.0, "10.50": 10.5}.items():
        assert parse(text).value == value
    for text in ("yes", "on", "True"):
        assert parse(text).value is True


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("04", ["04_dpo_lora_4bit"]),
        ("4", ["04_dpo_lora_4bit"]),
        ("04_dpo", ["04_dpo_lora_4bit"]),
        ("dpo", ["04_dpo_lora_4bit"]),
        ("lora", ["09_sft_lora_4bit", "04_dpo_lora_4bit"]),
        ("report", ["06_report"]),
        ("01_tree_rollout", ["01_tree_rollout"]),
        ("0", [s for s in (stage.name for stage in STAGES)]),
        ("9", ["09_sft_lora_4bit"]),
        ("10", []),
        ("train", []),
        ("", []),
        ("ti", ["02_step_valuation", "03_pair_construction", "05_benchmark_evaluation", "07_ablation"]),
    ],
)
def test_a_stage_is_found_by_its_number_its_beginning_or_a_part_of_its_name(name: str, found: list[str]) -> None:
    assert matching_names(name, [stage.name for stage in STAGES]) == found


def test_stages_are_named_by_number_or_by_a_part_of_the_name(root: Path) -> None:
    assert load(root, "stages: [1, double]\nshared:\n  seed: 1\n").stages == ("01_count", "02_double")


def test_set_takes_a_part_of_a_notebooks_name(root: Path) -> None:
    found = load(root, None, "01.n=7", "double.loud=true", "1.rate=0.5").parameters
    assert (found["01_count"]["n"], found["01_count"]["rate"], found["02_double"]["loud"]) == (7, 0.5, True)


def test_a_list_in_set_is_shown_in_one_word_for_the_shell() -> None:
    notebooks = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    for written in ("3,2", "3 2", "(3,2)", "3, 2"):
        with pytest.raises(MedReflError, match=r"expected list\[int\], such as \[3,2\]$"):
            load_profile(ROOT / "params/smoke.yaml", notebooks, root=ROOT, overrides=[f"01.branching={written}"])
    with pytest.raises(MedReflError, match=r"found 3 \(int\), expected list\[int\], such as \[3\]$"):
        load_profile(ROOT / "params/smoke.yaml", notebooks, root=ROOT, overrides=["01.branching=3"])


@pytest.mark.parametrize("name", ["smoke", "params/smok.yaml", "smoke.yaml", "params/smoke.yml", "params/smoke"])
def test_a_profile_that_is_not_there_brings_a_similar_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(MedReflError) as caught:
        load_profile(Path(name), {}, root=ROOT)
    assert str(caught.value) == (f"{name}: cannot be read: No such file or directory (did you mean params/smoke.yaml?)")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("01_count.n", "--set 01_count.n: expected section.key=value, such as shared.seed=1"),
        ("n=3", "--set n=3: expected section.key=value, such as shared.seed=1"),
        ("01_count.n=[", "--set 01_count.n=[: the value is not YAML"),
        ("01_count.m=3", "--set 01_count.m: unknown key 'm'"),
        ("01_count.n=many", "--set 01_count.n (for 01_count): found 'many' (str), expected int"),
        ("01_count.data=./none", "--set 01_count.data: no such file or folder: ./none"),
        ("shared.sed=1", "--set shared.sed: no notebook has the parameter 'sed' (did you mean 'seed'?)"),
        ("shared.run=a/b", "--set shared.run: found 'a/b', expected the run's name"),
        ("shared.seed=010", "--set shared.seed: 010 is 8 in YAML (octal): write 10 or 8 for a number"),
        ("1.n=1:30", "--set 1.n: 1:30 is 90 in YAML (base 60): write 90 for a number"),
        (
            "01.data=off",
            "--set 01.data (for 01_count): found False (bool), expected str: YAML reads off as False, "
            "so write \"'off'\" in two pairs of quotes",
        ),
        ("0.n=1", "--set 0.n: '0' can mean 01_count or 02_double or 03_tell"),
        ("cuont.n=1", "--set cuont.n: 'cuont' is not a section (did you mean '01_count'?)"),
    ],
)
def test_a_wrong_override_names_itself(root: Path, override: str, message: str) -> None:
    with pytest.raises(MedReflError) as caught:
        load(root, None, override)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "value", ["org/name", "clinic", "openlifescienceai/medqa", "a note. With a full stop", "x" * 5000]
)
def test_a_hub_id_or_a_word_is_no_path(root: Path, value: str) -> None:
    assert load(root, {"01_count": {"data": value}}).parameters["01_count"]["data"] == value


def test_home_is_expanded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    (root / "exam.csv").write_text("x")
    assert load(root, {"01_count": {"data": "~/exam.csv"}}).parameters["01_count"]["data"] == str(root / "exam.csv")


def test_missing_and_binary_profiles(root: Path) -> None:
    notebooks = {"01_count": root / "notebooks/01_count.ipynb"}
    with pytest.raises(MedReflError, match="^nowhere.yaml: cannot be read: No such file or directory$"):
        load_profile(Path("nowhere.yaml"), notebooks, root=root)
    (root / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MedReflError, match="^b.yaml: is not UTF-8 text"):
        load_profile(Path("b.yaml"), notebooks, root=root)


def test_parameters_cell_is_read_with_what_papermill_misreads(root: Path) -> None:
    toy.notebook(root / "n.ipynb", 'a: str = "x # y"  # text\nb: list[int] = [\n    1,\n]\nc: float = -1.5', [])
    assert notebook_parameters(root / "n.ipynb") == {
        "a": Parameter("a", "str", "x # y", "text"),
        "b": Parameter("b", "list[int]", [1]),
        "c": Parameter("c", "float", -1.5),
    }


@pytest.mark.parametrize("line", ["a = 1", "a: int", "a: int = 1 + b", "print(1)", "import os"])
def test_a_line_that_is_no_parameter_is_an_error(root: Path, line: str) -> None:
    toy.notebook(root / "n.ipynb", line, [])
    with pytest.raises(MedReflError, match="is not 'name: type = literal'"):
        notebook_parameters(root / "n.ipynb")


def test_what_a_section_does_not_say_follows_another_notebook(root: Path) -> None:
    path = toy.profile(root, {"shared": {"run": "x"}, "01_count": {"seed": 5}})
    notebooks = {stage.name: root / "notebooks" / f"{stage.name}.ipynb" for stage in toy.STAGES}
    follows = {"02_double": ("01_count", {"seed": "seed"})}
    profile = load_profile(path, notebooks, root=root, follows=follows)
    assert profile.parameters["02_double"]["seed"] == 5
    said = load_profile(path, notebooks, root=root, follows=follows, overrides=["02_double.seed=6"])
    assert said.parameters["02_double"]["seed"] == 6 and said.parameters["01_count"]["seed"] == 5


def test_an_old_name_is_refused_with_the_new_one(tmp_path: Path) -> None:
    notebooks = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    for stage, table in RENAMED.items():
        known = notebook_parameters(notebooks[stage])
        for old, new in table.items():
            assert new in known and old not in known
            path = toy.profile(tmp_path, {"shared": {"run": "x"}, stage: {old: 1}})
            with pytest.raises(MedReflError, match=f"unknown key '{old}' \\(since version 0.2.0 it is '{new}'\\)"):
                load_profile(path, notebooks, root=ROOT)
    path = toy.profile(tmp_path, {"shared": {"run": "x", "rank": 8}})
    with pytest.raises(
        MedReflError, match=r"no notebook has the parameter 'rank' \(since version 0.2.0 it is 'lora_rank'\)"
    ):
        load_profile(path, notebooks, root=ROOT)


def test_a_choice_may_be_written_as_a_number(tmp_path: Path) -> None:
    notebooks = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    path = toy.profile(tmp_path, {"shared": {"run": "x"}, "05_benchmark_evaluation": {"answer_base": 1}})
    found = load_profile(path, notebooks, root=ROOT, follows=FOLLOWS).parameters
    assert found["05_benchmark_evaluation"]["answer_base"] == "1"
    assert found["03_pair_construction"]["evaluation_answer_base"] == "1"
    path = toy.profile(tmp_path, {"shared": {"run": "x", "answer_base": 2}})
    with pytest.raises(MedReflError, match="found 2 .* expected str"):
        load_profile(path, notebooks, root=ROOT)


@pytest.mark.parametrize(
    ("stages", "key", "named"),
    [
        ("", "seed", "01_tree_rollout"),
        ("", "beta", "04_dpo_lora_4bit"),
        ("stages: [9, 1, 6]\n", "seed", "09_sft_lora_4bit"),
        ("stages: [3]\n", "seed", "03_pair_construction"),
        ("stages: [6]\n", "beta", "04_dpo_lora_4bit"),
    ],
)
def test_an_error_in_a_shared_key_names_the_first_notebook_of_the_run(
    stages: str, key: str, named: str, tmp_path: Path
) -> None:
    path, notebooks = tmp_path / "p.yaml", {s.name: ROOT / "notebooks" / f"{s.name}.ipynb" for s in STAGES}
    path.write_text(f"{stages}shared:\n  {key}: x\n")
    with pytest.raises(MedReflError, match=rf"section 'shared': key '{key}' \(for {named}\): found 'x'"):
        load_profile(path, notebooks, root=ROOT)


TUNED = "runs/x/sft_model"


def tuning(root: Path, content: dict, *overrides: str) -> Profile:
    notebooks = {stage.name: ROOT / "notebooks" / f"{stage.name}.ipynb" for stage in STAGES}
    stages = {"stages": ["08_knowledge_chains", "09_sft_lora_4bit", "01_tree_rollout", "06_report"]}
    path = toy.profile(root, stages | {"shared": {"run": "x", "model": "org/base"}} | content)
    return load_profile(path, notebooks, root=ROOT, overrides=overrides, follows=FOLLOWS, continues=CONTINUES)


def test_later_notebooks_continue_from_the_fine_tuned_model_unless_their_own_section_names_one(tmp_path: Path) -> None:
    own = {"03_pair_construction": {"model": "org/writer"}}
    found = tuning(tmp_path, {"continue_from": "09_sft_lora_4bit", "baseline": True} | own)
    models = {stage: values["model"] for stage, values in found.parameters.items() if "model" in values}
    assert models == {
        "08_knowledge_chains": "org/base", "09_sft_lora_4bit": "org/base", "01_tree_rollout": TUNED,
        "03_pair_construction": "org/writer", "04_dpo_lora_4bit": TUNED, "05_benchmark_evaluation": TUNED,
        "07_ablation": TUNED,
    }  # fmt: skip
    assert (found.tuned, found.original, found.baseline) == (TUNED, "org/base", "x_baseline")
    assert found.parameters["06_report"]["baseline"] == "runs/x_baseline"
    beside = found.of_baseline(["01_tree_rollout", "03_pair_construction"])
    assert beside["01_tree_rollout"] == found.parameters["01_tree_rollout"] | {
        "model": "org/base",
        "run": "runs/x_baseline",
    }
    assert beside["03_pair_construction"]["model"] == "org/writer"
    assert found.before_tuning(tmp_path)["01_tree_rollout"]["model"] == "org/base"
    (tmp_path / TUNED).mkdir(parents=True)
    assert found.before_tuning(tmp_path)["01_tree_rollout"]["model"] == TUNED


def test_own_chains_come_from_the_baselines_trees_unless_the_profile_names_a_run(tmp_path: Path) -> None:
    both = {"continue_from": "09_sft_lora_4bit", "baseline": True}
    for overrides, expected in (
        ((), ""), (("09.targets=own",), "runs/x_baseline"), (("09.targets=own", "09.own_run=runs/y"), "runs/y"),
    ):  # fmt: skip
        assert tuning(tmp_path, both, *overrides).parameters["09_sft_lora_4bit"]["own_run"] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"continue_from": "08_knowledge_chains"}, "'continue_from' holds '08_knowledge_chains', expected 09_sft_lora"),
        ({"continue_from": 9}, "'continue_from' holds 9, expected 09_sft_lora_4bit"),
        (
            {"continue_from": "09_sft_lora_4bit", "stages": ["01_tree_rollout"]},
            "which 'stages' leaves out: add it there",
        ),
        ({"baseline": True}, "'baseline' is true, which needs 'continue_from'"),
        (
            {"continue_from": "09_sft_lora_4bit", "baseline": "maybe"},
            "'baseline' holds 'maybe', expected true or false",
        ),
        ({"contnue_from": "x"}, "holds 'x', expected key: value lines (did you mean 'continue_from'?)"),
    ],
)
def test_a_wrong_continuation_is_one_line(content: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(MedReflError) as caught:
        tuning(tmp_path, content)
    assert message in str(caught.value) and "\n" not in str(caught.value)
