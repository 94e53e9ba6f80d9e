"""Log-likelihoods of answers: they equal those of decoding token by token, and do not depend on the batch."""

import jax
import numpy as np
import pytest

from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation import text_decoder
from tuna_jax.inference.scoring import likelihoods

pytestmark = pytest.mark.usefixtures("any_words")


def _image(seed):
    return np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3), np.uint8)


def _decode(tuna, conversation, count):
    """`count` greedy tokens after a conversation and the log-probabilities of every step."""
    prefix = tuna.prefix([tuna.prompt_tokens(conversation)], [conversation.media])
    decoded = text_decoder.generate(
        tuna.config,
        tuna.params,
        prefix,
        jax.random.key(0),
        eos=-1,
        max_new_tokens=count,
        keep_logits=True,
    )
    assert decoded.logits is not None
    return np.asarray(decoded.tokens)[0], np.asarray(jax.nn.log_softmax(decoded.logits[0]))


@pytest.mark.parametrize("media", [(), (_image(0),), (_image(0), _image(1))])
def test_an_answer_has_the_probability_of_decoding_it(tuna, monkeypatch, media):
    conversation = Conversation.of(media, "what is this?")
    ids, log_probabilities = _decode(tuna, conversation, 5)
    # An untrained model's tokens need not be text, so the tokenizer gives these ids for a name.
    monkeypatch.setattr(type(tuna.tokenizer), "encode", _naming(tuna.tokenizer, ids.tolist()))
    greedy = likelihoods(tuna, [conversation], ["NAME"], ended=False)
    expected = log_probabilities[np.arange(5), ids].sum()
    np.testing.assert_allclose(greedy.log_probability, [expected], rtol=1e-4)
    assert greedy.greedy.tolist() == [True]
    assert greedy.tokens.tolist() == [5]
    # Another second token, whose probability decoding has given too.
    other = [int(ids[0]), int(np.argsort(log_probabilities[1])[-2])]
    monkeypatch.setattr(type(tuna.tokenizer), "encode", _naming(tuna.tokenizer, other))
    scores = likelihoods(tuna, [conversation], ["NAME"], ended=False)
    expected = log_probabilities[0, other[0]] + log_probabilities[1, other[1]]
    np.testing.assert_allclose(scores.log_probability, [expected], rtol=1e-4)
    assert scores.greedy.tolist() == [False]


def _naming(tokenizer, ids):
    encode = type(tokenizer).encode
    return lambda self, text: ids if text == "NAME" else encode(self, text)


def test_the_end_is_scored_if_requested(tuna):
    conversation = Conversation.of([], "what is a dog?")
    without_end, with_end = (
        likelihoods(tuna, [conversation], ["a dog"], ended=ended) for ended in (False, True)
    )
    assert with_end.tokens[0] == without_end.tokens[0] + 1
    assert with_end.log_probability[0] < without_end.log_probability[0]


def test_rows_do_not_depend_on_the_batch(tuna):
    conversations = [
        Conversation.of([_image(i)] if i % 2 else [], f"what is {'this ' * i}?") for i in range(5)
    ]
    answers = ["a dog", "a red apple on the left", "blue", "a cat", "two of them"]
    batch = likelihoods(tuna, conversations, answers)
    for i, (conversation, answer) in enumerate(zip(conversations, answers, strict=True)):
        single = likelihoods(tuna, [conversation], [answer], batch_size=1)
        np.testing.assert_allclose(single.log_probability[0], batch.log_probability[i], rtol=1e-4)
        assert single.tokens[0] == batch.tokens[i]
    assert len(set(batch.log_probability.tolist())) == 5


def test_an_answer_per_conversation_is_required(tuna):
    conversation = Conversation.of([], "what?")
    with pytest.raises(ValueError, match="2 answers for 1 conversations"):
        likelihoods(tuna, [conversation], ["a", "b"])
    with pytest.raises(ValueError, match="answer ''"):
        likelihoods(tuna, [conversation], [""], ended=False)
