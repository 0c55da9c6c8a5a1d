"""Answers in contexts: bytes of tokens, windows, and the best stretch, by trying all."""

import jax
import numpy as np
import pytest

from jaxpretrain.assemble import build
from jaxpretrain.data.store import Store
from jaxpretrain.data.tasks_rows import Answer, Item
from jaxpretrain.evaluation import answers
from jaxpretrain.evaluation.answers import Answerer, Windows, best_spans, windows
from jaxpretrain.evaluation.reading import Rows
from jaxpretrain.settings import DownstreamSettings
from support import tiny_run

CONTEXTS = [
    "The statement is executed.",
    "Two  spaces,   then\nlines.\n\n    An indented one:\n\tx = 1\n\n\n",
    "\nA line that is empty comes first.",
    "\n\n  And two, é.\n",
    " \nA space alone.",
    "Ünder a naïve café: 漢字と仮名。 Съешь ещё этих.",
    "Faces 😀👩‍👩‍👧‍👦 and flags 🇩🇪\n😀 \u2581 marks \u2581\u2581x.",
    "a\r\nb\tc\u2028d \xa0e",
]


@pytest.fixture(scope="module")
def asked(tiny_config_file):
    config = tiny_run.config(tiny_config_file)
    tokenizer = Store.open(config.store.path).tokenizer
    return build(config, tokenizer.vocab).objective, tokenizer


def item(context, *found, asked="Is it here?"):
    return Item((asked, context), tuple(Answer(text, start) for text, start in found))


@pytest.mark.parametrize("context", [*CONTEXTS, "\n".join(CONTEXTS), ""], ids=ascii)
def test_the_bytes_of_a_token_are_its_text(asked, context):
    """Piece by piece: bytes as they are, text without the spaces before it, a newline as none."""
    _, tokenizer = asked
    [(ids, begins, ends)] = tokenizer.locate([context])
    assert ids.tolist() == tokenizer.encode(context)
    raw, covered = context.encode(), 0
    for piece, low, high in zip(tokenizer.pieces(ids), begins.tolist(), ends.tolist(), strict=True):
        if piece.startswith("<0x"):
            expected = bytes([int(piece[3:5], 16)])
        else:
            expected = piece.lstrip("\u2581").encode().strip(b"\n")
        assert raw[low:high] == expected, piece
        # Between two tokens there are spaces or a newline, never anything else.
        assert low >= covered and not raw[covered:low].strip(b" \n")
        covered = high
    assert covered == len(raw) or not raw[covered:].strip()


def words_with_places(text):
    start = 0
    for word in text.split(" "):
        if word.strip() == word and word:
            yield word, start
        start += len(word) + 1


def restored(found, number, target, context):
    """The bytes of the context from the first to the last position of a target."""
    low, high = found.begins[number, target[0]], found.ends[number, target[1]]
    return context.encode()[low:high].decode("utf-8", "ignore")


def test_every_answer_of_whole_words_comes_back_from_its_target(asked):
    items = []
    for context in CONTEXTS:
        found = list(words_with_places(context))
        for i, (_, start) in enumerate(found):
            for word, at in found[i : i + 3]:
                items.append(item(context, (context[start : at + len(word)], start)))
    made = windows(*asked, items, 200)
    assert made.owners.tolist() == list(range(len(items))) and len(items) > 60
    for number, one in enumerate(items):
        text = restored(made, number, made.targets[number], one.texts[1])
        assert text.strip() == one.label[0].text, one


def test_an_answer_inside_of_tokens_is_covered_by_them(asked):
    context = CONTEXTS[0] + " " + CONTEXTS[5]
    items = [
        item(context, (context[i:j], i))
        for i in range(len(context))
        for j in range(i + 1, min(i + 7, len(context)))
        if context[i:j].strip() == context[i:j]
    ]
    made = windows(*asked, items, 200)
    for number, one in enumerate(items):
        first, last = made.targets[number]
        low, high = made.begins[number, first], made.ends[number, last]
        start = len(context[: one.label[0].start].encode())
        assert low <= start and high >= start + len(one.label[0].text.encode())
        # And by no more of them than need be.
        assert made.ends[number, first] > start
        assert made.begins[number, last] < start + len(one.label[0].text.encode())


@pytest.mark.parametrize("length", [9, 20, 33, 64, 400])
def test_windows_cover_every_token_of_the_context_and_overlap_by_half(asked, length):
    objective, tokenizer = asked
    vocab = tokenizer.vocab
    question = "Is it here? " * 9
    items = [item("\n".join(CONTEXTS)), item("x", asked=question), item(""), item(CONTEXTS[0] * 3)]
    made = windows(objective, tokenizer, items, length)
    assert sorted(set(made.owners.tolist())) == [0, 1, 2, 3]
    for owner, one in enumerate(items):
        q = tokenizer.encode(one.texts[0])[: length // 2]
        context = tokenizer.encode(one.texts[1])
        [(_, begins, _)] = tokenizer.locate([one.texts[1]])
        place, before = 0, None
        rows = np.flatnonzero(made.owners == owner)
        for row in rows:
            size = int(made.rows.segments[row].sum())
            ids = made.rows.ids[row, :size].tolist()
            assert ids[: len(q) + 2] == [vocab.bos, *q, vocab.eos] and ids[-1] == vocab.eos
            assert made.rows.types[row, :size].tolist() == [0] * (len(q) + 2) + [1] * (
                size - len(q) - 2
            )
            assert size <= length + 3
            part = ids[len(q) + 2 : -1]
            if before is not None:
                place += max((length - len(q)) // 2, 1)
                assert place < before  # each begins inside the one before
            assert part == context[place : place + length - len(q)]
            before = place + len(part)
            inside = made.begins[row] >= 0
            assert np.flatnonzero(inside).tolist() == list(range(len(q) + 2, size - 1))
            assert made.begins[row][inside].tolist() == begins[place:before].tolist()
            assert ((made.ends[row] >= 0) == inside).all()
        assert before == len(context)


def test_an_answer_is_the_target_of_the_windows_that_have_all_of_it(asked):
    """Each two words that follow each other; a window may end or begin between them."""
    context = " ".join(f"word{n}" for n in range(30))
    pairs = [f"word{n} word{n + 1}" for n in range(29)]
    starts = [context.index(pair) for pair in pairs]
    items = [item(context, found) for found in zip(pairs, starts, strict=True)]
    made = windows(*asked, [*items, item(context)], 40)
    halves = 0
    for row, owner in enumerate(made.owners.tolist()):
        target = made.targets[row].tolist()
        if owner == len(items):
            assert target == [0, 0]
            continue
        start, end = starts[owner], starts[owner] + len(pairs[owner])
        low, high = made.begins[row][made.begins[row] >= 0][0], made.ends[row].max()
        if low <= start and high >= end:
            assert restored(made, row, target, context) == pairs[owner]
        else:
            assert target == [0, 0]
            halves += start < low < end or start < high < end
    assert halves


def test_the_first_of_several_answers_is_the_target(asked):
    context = "one two three"
    made = windows(*asked, [item(context, ("two", 4), ("one", 0))], 40)
    assert restored(made, 0, made.targets[0], context) == "two"


def made_windows(rng, questions, length):
    owners = np.sort(np.concatenate([np.arange(questions), rng.integers(0, questions, questions)]))
    begins = np.full((len(owners), length), -1)
    for number in range(len(owners)):
        low = rng.integers(2, 5)
        high = rng.integers(low, length)
        begins[number, low:high] = 10 + 3 * np.arange(high - low)
    ends = np.where(begins >= 0, begins + 2, -1)
    nothing = np.zeros((len(owners), 2), np.int32)
    return Windows(Rows(begins, begins, begins), owners, begins, ends, nothing)


@pytest.mark.parametrize("longest", [1, 4, 30])
@pytest.mark.parametrize("may_be_none", [False, True])
def test_the_best_stretch_is_that_of_trying_all(longest, may_be_none, monkeypatch):
    monkeypatch.setattr(answers, "LONGEST_ANSWER", longest)
    rng = np.random.default_rng(longest)
    none = 0
    for _ in range(20):
        made = made_windows(rng, 6, 24)
        scores = rng.normal(size=(len(made.owners), 24, 2))
        scores[:, 0] += rng.choice([0.5, 1.5])
        found = best_spans(scores, made, 6, may_be_none=may_be_none)
        for question in range(6):
            best, least, span = -np.inf, np.inf, (0, 0)
            for row in np.flatnonzero(made.owners == question):
                least = min(least, scores[row, 0].sum())
                for i in range(24):
                    for j in range(i, min(i + longest, 24)):
                        if made.begins[row, i] >= 0 and made.begins[row, j] >= 0:
                            value = scores[row, i, 0] + scores[row, j, 1]
                            if value > best:
                                best, span = value, (made.begins[row, i], made.ends[row, j])
            if may_be_none and least > best:
                span, none = (0, 0), none + 1
            assert found[question] == span
    assert (none > 5) == may_be_none


def test_a_model_learns_to_point_at_a_word_and_at_nothing_where_it_is_not(asked):
    """The word after "is"; without it there is no answer. The backbone is trained too."""
    objective, tokenizer = asked
    rng = np.random.default_rng(0)
    names = ["class", "name", "object", "function", "module", "value"]

    def made(rows):
        found = []
        for n in range(rows):
            words = list(rng.choice(names, 5))
            if n % 3:
                words[rng.integers(0, 4)] = "is"
                place = words.index("is") + 1
                start = len(" ".join(words[:place])) + 1
                found.append(item(" ".join(words), (words[place], start), asked="is"))
            else:
                found.append(item(" ".join(words), asked="is"))
        return found

    train, test = made(256), made(60)
    cut = [windows(objective, tokenizer, part, 32) for part in (train, test)]
    params = jax.jit(objective.init)(jax.random.key(0))
    settings = DownstreamSettings(epochs=25, batch_size=32)
    learner = Answerer(objective, params, cut[0], settings, frozen=False, may_be_none=True)
    predict = learner.fit(learning_rate=1e-2, seed=0)
    found = predict(test, cut[1])
    right = [
        text == (one.label[0].text if one.label else "")
        for text, one in zip(found, test, strict=True)
    ]
    assert np.mean(right) > 0.85
