"""The text loss in chunks: equal to the whole loss, and nothing is computed for tokens without labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax.models.text_loss import chunked_text_loss, text_loss
from tuna_jax.sequence import IGNORE

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 17, 6, 11


def _case(labelled: list[list[int]]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, hidden states, and labels at these positions of every row."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights = jax.random.normal(keys[0], (WIDTH, VOCABULARY))
    hidden = jax.random.normal(keys[1], (ROWS, LENGTH, WIDTH))
    tokens = jax.random.randint(keys[2], (ROWS, LENGTH), 0, VOCABULARY)
    labels = np.full((ROWS, LENGTH), IGNORE)
    for row, places in enumerate(labelled):
        labels[row, places] = tokens[row, np.asarray(places, int)]
    return weights, hidden, jnp.asarray(labels)


SCATTERED = [[1, 5, 6, 16], [], [3, 4, 7, 8, 9, 12, 15]]


def test_a_label_is_the_token_at_its_own_position() -> None:
    scores = jnp.zeros((1, 4, 5)).at[0, 1, 3].set(50.0)
    labels = jnp.asarray([[-100, -100, 3, -100]])
    total, count = text_loss(scores, labels)
    assert float(total[0]) == pytest.approx(0.0, abs=1e-6) and float(count[0]) == 1


@pytest.mark.parametrize("chunk", [1, 4, 5, 16])
@pytest.mark.parametrize("labelled", [SCATTERED, [list(range(LENGTH))] * ROWS, [[]] * ROWS])
def test_chunks_have_the_sums_and_gradients_of_the_whole(labelled, chunk: int) -> None:
    weights, hidden, labels = _case(labelled)

    def whole(weights, hidden):
        sums, counts = text_loss(hidden @ weights, labels)
        return 0.3 * sums.sum(), (sums, counts)

    def parts(weights, hidden):
        score = lambda weights, hidden: hidden @ weights
        total, *sums = chunked_text_loss(score, weights, hidden, labels, chunk)
        return 0.3 * total, tuple(sums)

    wanted, got = (
        jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(weights, hidden)
        for run in (whole, parts)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), wanted, got)
    without = jax.jit(parts)(weights, hidden)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), without, got[0])


@pytest.mark.parametrize("learned", [0, 1])
def test_a_single_gradient_equals_that_of_both(learned: int) -> None:
    """As with a frozen language transformer, which needs no gradient of the table."""
    weights, hidden, labels = _case(SCATTERED)

    def loss(weights, hidden):
        score = lambda weights, hidden: hidden @ weights
        return chunked_text_loss(score, weights, hidden, labels, 4)[0]

    both = jax.grad(loss, (0, 1))(weights, hidden)
    single = jax.jit(jax.grad(loss, learned))
    np.testing.assert_allclose(single(weights, hidden), both[learned], rtol=1e-6)
    products = str(jax.make_jaxpr(jax.grad(loss, learned))(weights, hidden)).count("dot_general")
    assert products == 2, "the scores, and one gradient"


@pytest.mark.parametrize(
    ("labelled", "computed"), [(SCATTERED, 2), ([[2], [5], [16]], 1), ([[]] * 3, 0)]
)
def test_a_chunk_without_a_label_is_not_computed(labelled, computed: int) -> None:
    """Seven labels of a row need two chunks of four, wherever they are."""
    weights, hidden, labels = _case(labelled)
    seen = []

    def score(weights, hidden):
        jax.debug.callback(lambda: seen.append(hidden.shape))
        return hidden @ weights

    def loss(weights, hidden):
        return chunked_text_loss(score, weights, hidden, labels, 4)[0]

    jax.block_until_ready(jax.jit(jax.value_and_grad(loss, (0, 1)))(weights, hidden))
    jax.effects_barrier()
    assert seen == [(ROWS, 4, WIDTH)] * computed, "once for the loss and its gradient"
