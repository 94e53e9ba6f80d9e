"""Log-likelihoods of answers: against decoding token by token, and independent of the batch."""

import jax
import numpy as np
import pytest

from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import text_decoder
from tuna_jax.inference.scoring import likelihoods

pytestmark = pytest.mark.usefixtures("any_words")


def _picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8)


def _decoded(tuna, conversation, longest):
    """Greedy tokens of a conversation and the log-probabilities of every step."""
    prefix = tuna.prefix([tuna.ask(conversation)], [conversation.shown])
    decoded = text_decoder.generate(
        tuna.config,
        tuna.params,
        prefix,
        jax.random.key(0),
        eos=-1,
        max_new_tokens=longest,
        keep_logits=True,
    )
    assert decoded.logits is not None
    return np.asarray(decoded.tokens)[0], np.asarray(jax.nn.log_softmax(decoded.logits[0]))


@pytest.mark.parametrize("shown", [(), (_picture(0),), (_picture(0), _picture(1))])
def test_a_greedy_answer_has_the_probability_that_decoding_gave_it(tuna, monkeypatch, shown):
    conversation = Conversation.of(shown, "what is this?")
    ids, steps = _decoded(tuna, conversation, 5)
    wanted = steps[np.arange(5), ids].sum()
    # An untrained model's tokens need not be a text: hand them over as they are.
    monkeypatch.setattr(type(tuna.tokenizer), "encode", _hand_over(tuna.tokenizer, ids.tolist()))
    found = likelihoods(tuna, [conversation], ["said"], ended=False)
    np.testing.assert_allclose(found.log_probability, [wanted], rtol=1e-4)
    assert found.greedy.tolist() == [True]
    assert found.tokens.tolist() == [5]
    # One other token: decoding the same prefix tells its probability too.
    other = [*ids[:1].tolist(), int(np.argsort(steps[1])[-2])]
    monkeypatch.setattr(type(tuna.tokenizer), "encode", _hand_over(tuna.tokenizer, other))
    found = likelihoods(tuna, [conversation], ["said"], ended=False)
    wanted = steps[0, other[0]] + steps[1, other[1]]
    np.testing.assert_allclose(found.log_probability, [wanted], rtol=1e-4)
    assert found.greedy.tolist() == [False]


def _hand_over(tokenizer, ids):
    encode = type(tokenizer).encode
    return lambda self, words: ids if words == "said" else encode(self, words)


def test_the_end_counts_if_it_is_asked_for(tuna):
    conversation = Conversation.of([], "what is a dog?")
    open_, ended = (
        likelihoods(tuna, [conversation], ["a dog"], ended=ended) for ended in (False, True)
    )
    assert ended.tokens[0] == open_.tokens[0] + 1
    assert ended.log_probability[0] < open_.log_probability[0]


def test_rows_do_not_depend_on_the_batch(tuna):
    asked = [
        Conversation.of([_picture(i)] if i % 2 else [], f"what is {'this ' * i}?") for i in range(5)
    ]
    answers = ["a dog", "a red apple on the left", "blue", "a cat", "two of them"]
    whole = likelihoods(tuna, asked, answers)
    for i, (conversation, answer) in enumerate(zip(asked, answers, strict=True)):
        alone = likelihoods(tuna, [conversation], [answer], batch_size=1)
        np.testing.assert_allclose(alone.log_probability[0], whole.log_probability[i], rtol=1e-4)
        assert alone.tokens[0] == whole.tokens[i]
    assert len(set(whole.log_probability.tolist())) == 5


def test_what_does_not_fit_is_named(tuna):
    conversation = Conversation.of([], "what?")
    with pytest.raises(ValueError, match="2 answers to 1 conversations"):
        likelihoods(tuna, [conversation], ["a", "b"])
    with pytest.raises(ValueError, match="the answer '' has no token"):
        likelihoods(tuna, [conversation], [""], ended=False)
