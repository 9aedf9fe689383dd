"""What is thrown at the commands: values that no key can have, and files that something has happened to."""

import re

from hypothesis import strategies as st

NUMBERS = (
    "nan",
    ".nan",
    "inf",
    "-inf",
    "1e400",
    "1e308",
    "1e-400",
    "-0.0",
    "0",
    "-1",
    "1.5",
    "0x10",
    "1_000",
    "9" * 20,
)
TEXTS = (
    *("", "null", "true", "~", "''", "'", "abc", "a b", "[]", "{}", "[1,2]", "[nan]", "[[1],[2]]", "{a: 1}", "[1"),
    *("{a: 1", "${seed}", "${nope}", "${", "2026-01-01", "1:30", "..", "a/b", "'é'", "日本", "a" * 300, "1,2", "???"),
)
KEYS = (
    *("seed", "precision", "engine", "engine_width", "compile", "channels_last", "steps_per_block", "cpu_threads"),
    *("control", "device", "fresh", "model", "data", "recipe", "experiment", "model.name", "model.builder"),
    *("model.options", "model.options.hidden_sizes", "model.options.activation", "model.options.dropout"),
    *("model.options.initialisation", "model.weights", "data.name", "data.source", "data.num_classes"),
    *("data.image_shape", "data.num_train", "data.num_test", "data.pixel_mean", "data.pixel_std", "data.split"),
    *("data.num_validation", "data.files_md5", "data.official_sha256", "data.known_copies", "recipe.name"),
    *("recipe.epochs_total", "recipe.batch_size", "recipe.optimizer", "recipe.optimizer.name", "recipe.clip_norm"),
    *("recipe.optimizer.lr_peak", "recipe.optimizer.momentum", "recipe.optimizer.weight_decay", "recipe.schedule"),
    *("recipe.optimizer.betas", "recipe.optimizer.eps", "recipe.optimizer.history_size", "recipe.schedule.name"),
    *("recipe.schedule.epochs_warmup", "recipe.schedule.lr_end_factor", "recipe.schedule.milestones"),
    *("recipe.schedule.gamma", "recipe.loss.label_smoothing", "recipe.loss.l2_penalty", "recipe.normalisation"),
    *("recipe.normalisation.mean", "recipe.normalisation.std", "recipe.augmentation.name", "recipe.augmentation"),
    *("recipe.augmentation.probability", "recipe.augmentation.pad_pixels", "recipe.resolution", "recipe.streaming"),
    *("hydra.run.dir", "hydra.nope"),
)
FORMS = ("{key}={value}", "+{key}={value}", "++{key}={value}", "~{key}", "{key}", "{key}=")
TYPOS = ("{key}.below={value}", "{key}x={value}", "{key}=={value}")
FLAGS = ("--config-name=nope", "--config-dir=/nope", "--nope")

# Nothing between a few hundred and a trillion: a net of so many units would be built, and take all memory.
amounts = st.one_of(st.integers(-10, 300), st.integers(10**12, 2**70), st.floats(-10, 10)).map(str)
few_amounts = st.lists(st.one_of(st.integers(-2, 20), st.floats(-2, 2)), max_size=4).map(str)
values = st.one_of(st.sampled_from(NUMBERS), st.sampled_from(TEXTS), amounts, few_amounts)


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """One argument of train.py, broken in some way as a rule."""
    form = draw(st.one_of(st.just(FORMS[0]), st.sampled_from(FORMS), st.sampled_from(TYPOS)))
    return form.format(key=draw(st.sampled_from(KEYS)), value=draw(values))


arguments = st.one_of(
    st.lists(overrides(), min_size=1, max_size=3),
    st.tuples(st.sampled_from(KEYS), st.one_of(amounts, few_amounts)).map(lambda pair: ["=".join(pair)]),
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.lists(values, max_size=1),
)

JUNK = (
    *(b"\xff\xfe", b"\t", b"\n\n", b": ", b"- ", b"[", b"{", b"}", b"'", b'"', b"#", b",", b"${nope}", "é".encode()),
    *(b"nan", b".nan", b".inf", b"1e400", b"-1", b"9" * 20, b"null", b"true", b"abc", b"x" * 300),
)
NUMBER = re.compile(rb"\d+(?:\.\d+)?")


@st.composite
def mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """The content after one to three accidents, or something else altogether."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.just(b""), st.binary(max_size=40), st.sampled_from(JUNK)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        junk = draw(st.sampled_from(JUNK))
        match draw(st.sampled_from(("cut", "flip", "lose", "insert", "number", "line twice", "no line"))):
            case "cut":
                content = content[:at]
            case "flip":
                content = content[:at] + bytes(byte ^ 1 << at % 8 for byte in content[at : at + 1]) + content[at + 1 :]
            case "lose":
                content = content[:at] + content[at + draw(st.integers(1, 40)) :]
            case "insert":
                content = content[:at] + junk + content[at:]
            case "number":
                found = NUMBER.search(content, at)
                content = content[: found.start()] + junk + content[found.end() :] if found else content
            case "line twice":
                lines = content.splitlines(keepends=True)
                content = b"".join([*lines, *lines[at % len(lines) :][:1]]) if lines else content
            case "no line":
                lines = content.splitlines(keepends=True)
                content = b"".join([*lines[: at % len(lines)], *lines[at % len(lines) + 1 :]]) if lines else content
    return content
