"""subspaces.py: phi against its definition in a double loop, the rest against numpy's whole SVD."""
import math

import numpy as np
import pytest
import torch

from subspaces import (count_intruders, effective_rank, norm_through, overlap, phi,
                       random_directions, random_phi, random_spectrum, share_held, svd_of_product)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def phi_by_loops(A1, A2):
    """Section 7.2's equation, once for each i and j."""
    U1, U2 = (np.linalg.svd(A.double().numpy())[2].T for A in (A1, A2))     # (in, in)
    r1, r2 = (min(A.shape) for A in (A1, A2))
    values = np.zeros((r1, r2))
    for i in range(1, r1 + 1):
        for j in range(1, r2 + 1):
            norm = np.linalg.norm(U1[:, :i].T @ U2[:, :j], "fro")
            values[i - 1, j - 1] = norm ** 2 / min(i, j)
    return values


# ----- phi ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shapes", [((5, 12), (8, 12)), ((8, 12), (5, 12)), ((1, 9), (1, 9)),
                                    ((15, 12), (3, 12))])
def test_phi_is_the_papers_equation(shapes):
    A1, A2 = gaussian(*shapes[0]), gaussian(*shapes[1], seed=1)
    A2[0] += 2 * A1[0]                  # so that they share something
    values = phi(A1, A2)
    np.testing.assert_allclose(values, phi_by_loops(A1, A2), atol=1e-9)
    assert values.min() >= 0 and values.max() <= 1


def test_phi_by_hand():
    """A1's first direction is e1 and then e2, A2's is e2 and then e1."""
    A1 = torch.tensor([[3.0, 0, 0], [0, 1, 0]])
    A2 = torch.tensor([[1.0, 0, 0], [0, 2, 0]])
    assert phi(A1, A2).tolist() == [[0, 1], [1, 1]]


def test_phi_of_the_same_and_of_nothing_in_common():
    A = gaussian(6, 20)
    assert (1 - phi(A, A)).abs().max() < 1e-9           # the smaller space lies in the larger
    mixed = gaussian(6, 6, seed=1) @ A                  # other rows, the same space
    assert phi(A, mixed)[-1, -1] == pytest.approx(1)
    assert phi(A, mixed)[0, 0] < 0.99                   # but not the same top direction
    apart = torch.zeros(2, 4), torch.zeros(2, 4)
    apart[0][:, :2], apart[1][:, 2:] = gaussian(2, 2), gaussian(2, 2, seed=1)
    assert phi(*apart).max() < 1e-9


def test_phi_of_random_matrices_is_what_chance_gives():
    """max(i, j) / d in the mean, 200 times."""
    d, r1, r2 = 24, 3, 6
    mean = sum(phi(gaussian(r1, d, seed=2 * k), gaussian(r2, d, seed=2 * k + 1))
               for k in range(200)) / 200
    i, j = np.arange(1, r1 + 1), np.arange(1, r2 + 1)
    np.testing.assert_allclose(mean, np.maximum.outer(i, j) / d, rtol=0.2)
    assert random_phi(r1, r2, d)[-1, -1] == pytest.approx(r2 / d, rel=0.6)
    assert random_phi(r1, r2, d) is random_phi(r1, r2, d)


def test_overlap_takes_the_directions_in_the_order_given():
    """phi's SVD would lose it: orthonormal rows all have the singular value 1."""
    V = torch.eye(4)
    assert overlap(V[:2], V[[1, 0]]).tolist() == [[0, 1], [1, 1]]


# ----- one change ---------------------------------------------------------------------------------

@pytest.mark.parametrize(("out", "r", "inner"), [(40, 4, 30), (30, 4, 40), (6, 9, 30), (30, 9, 6)])
def test_the_svd_of_a_product(out, r, inner):
    """r above min(out, in) too. Against the SVD of the whole matrix."""
    A, B = gaussian(r, inner), gaussian(out, r, seed=1)
    A[1] = 2 * A[0]                     # and of a rank below r
    dW = 1.5 * B @ A
    U, S, Vh = svd_of_product(A, B, 1.5)
    torch.testing.assert_close(S, torch.linalg.svdvals(dW)[:len(S)], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(U * S @ Vh, dW, atol=2e-5, rtol=1e-5)
    for V in (U.T, Vh):
        torch.testing.assert_close(V @ V.T, torch.eye(len(S)), atol=1e-5, rtol=0)
    assert len(S) == min(out, r, inner)


def test_effective_rank():
    assert effective_rank(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_rank(torch.tensor([5.0, 0, 0])) == pytest.approx(1)
    # p = 1/2, 1/4, 1/4: the entropy is 1.5 ln 2
    assert effective_rank(torch.tensor([2.0, 1, 1])) == pytest.approx(2 ** 1.5)


def test_share_held_is_what_the_best_matrix_of_that_rank_leaves():
    M = gaussian(8, 5)
    U, S, Vt = np.linalg.svd(M.numpy(), full_matrices=False)
    for r in range(1, 6):
        rest = M.numpy() - U[:, :r] * S[:r] @ Vt[:r]
        left = np.linalg.norm(rest) ** 2 / np.linalg.norm(M.numpy()) ** 2
        assert share_held(torch.from_numpy(S))[r - 1] == pytest.approx(1 - left, abs=1e-5)
    assert share_held(random_spectrum(8, 5))[-1] == pytest.approx(1)


# ----- a change and its W -------------------------------------------------------------------------

def test_norm_through():
    """||U^T W V|| as numpy has it; through W's own directions it is the root of its S^2."""
    W, M = gaussian(20, 12), gaussian(20, 12, seed=1)
    for source in (W, M):
        U, S, Vt = np.linalg.svd(source.numpy(), full_matrices=False)
        expected = np.linalg.norm(U[:, :4].T @ W.numpy() @ Vt[:4].T)
        ours = norm_through(W, torch.from_numpy(U[:, :4]), torch.from_numpy(Vt[:4]))
        assert ours == pytest.approx(expected, rel=1e-5)
        if source is W:
            assert ours == pytest.approx(math.sqrt((S[:4] ** 2).sum()), rel=1e-5)


def test_random_directions():
    """They are orthonormal, U is not V, and W has about r ||W|| / sqrt(out in) in them."""
    W = gaussian(150, 150)
    U, Vh = random_directions(150, 150, 30)
    assert U.shape == (150, 30) and Vh.shape == (30, 150)
    for V in (U.T, Vh):
        torch.testing.assert_close(V @ V.T, torch.eye(30), atol=1e-5, rtol=0)
    assert overlap(U.T, Vh)[-1, -1] == pytest.approx(0.2, rel=0.2)
    assert norm_through(W, U, Vh) == pytest.approx(30 * W.norm().item() / 150, rel=0.1)


def test_intruders():
    """W does something in 12 of 20 dimensions; a strong change in a 13th and 14th are two."""
    W = torch.zeros(20, 20)
    W[range(12), range(12)] = torch.arange(12.0, 0, -1)
    dW = torch.zeros(20, 20)
    dW[12, 0], dW[13, 13] = 0.1, 9.0        # weak: no new top direction; strong: one
    dW[14, 14] = 8.5

    def count(W_tuned):
        return count_intruders(torch.linalg.svd(W).U[:, :12], torch.linalg.svd(W_tuned).U)

    assert count(W) == count(1.5 * W) == 0
    assert count(W + dW) == 2
    assert count(W - 2 * dW) == 2           # the sign of a singular vector means nothing
    half = W.clone()
    half[:, 0] += 12 * torch.eye(20)[15]    # turns the top direction by 45 degrees: cos 0.71
    assert count(half) == 0
    half[:, 0] += 12 * torch.eye(20)[15]    # by 63: cos 0.45
    assert count(half) == 1
