"""What did a change of a weight learn? The linear algebra of it, with nothing but torch.

A change dW (out, in) is taken apart into directions:

    dW = U diag(S) V^T          U (out, r), V (in, r), S (r,) falling, r = rank of dW

V says to which inputs dW reacts, U where it writes its answer, S how strongly. With them:

    what do two runs share?             phi, the overlap of their top directions
    what does dW do to W?               ||U^T W V||: W seen through dW's directions
    how low is dW's rank really?        effective_rank, share_held
    does dW bring new directions?       count_intruders

The first two are section 7 of the LoRA paper (Hu et al., arXiv 2106.09685), the last is of
Shuttleworth et al. (arXiv 2410.21228). V^T (r, in) is called Vh here, as torch calls it.

Two traps, seen on nano after 40 steps:

1.  A starts random and moves little in a short run. B starts at 0, so all of it is learned. What
    two runs share then shows in B alone: between two seeds at r = 8, phi over all 8 directions of
    down_proj is 0.03 for A, where chance gives 0.02, and 0.22 for B, where it gives 0.04.
2.  One seed draws one stream of numbers. The first layer's A at r = 8 starts as the first 8 rows
    of the one at r = 64, so phi is 1 before anything is learned. It is 0.99 after the run, and
    0.35 for two different seeds. Compare different seeds.
"""
import functools

import torch

TOP = 10            # directions of W + dW that are looked at as intruders, and
EPSILON = 0.5       # the cosine below which one is: both as in arXiv 2410.21228


def seeded_normal(*shape, seed=0):
    """A Gaussian matrix, always the same one: every random baseline is made of these."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ----- two changes: what do they share? -----------------------------------------------------------

def phi(A1, A2):
    """How much of A1's top i directions lies in A2's top j, for all i and j: (r1, r2), in [0, 1].

        phi(A1, A2, i, j) = ||U1[:, :i]^T U2[:, :j]||_F^2 / min(i, j)       section 7.2, equation 4

    It is entry [i - 1, j - 1]. U1, U2 are the right singular vectors of A1 (r1, in), A2 (r2, in).
    The left ones of B are phi(B1.T, B2.T). A rank above `in` counts as `in`.

    1: the smaller space lies in the larger. Random ones: max(i, j) / in in the mean, because j
    dimensions of `in` hold j / in of a random unit vector's squared length. For r = 8 in r = 64
    with in = 192 that is 0.33, so a number says something only next to its baseline.
    """
    return overlap(right_directions(A1), right_directions(A2))


def right_directions(A):
    """The right singular vectors of A (r, in) as rows (r, in), the strongest first."""
    return torch.linalg.svd(A.double(), full_matrices=False).Vh


def overlap(V1, V2):
    """phi of directions that are orthonormal rows already: (r1, d), (r2, d) -> (r1, r2).

    ||.||_F^2 is a sum of squared cosines, so sums along both sides give all i and j at once.
    """
    squares = (V1.double() @ V2.double().T).square()                        # (r1, r2)
    i, j = (torch.arange(1, n + 1) for n in squares.shape)
    sums = squares.cumsum(0).cumsum(1)
    return (sums / torch.minimum(i[:, None], j)).clamp(max=1)       # without it rounding gives more


@functools.cache
def random_phi(r1: int, r2: int, d: int):
    """phi of two Gaussian matrices (r1, d) and (r2, d)."""
    both = seeded_normal(r1 + r2, d)
    return phi(both[:r1], both[r1:])


# ----- one change -------------------------------------------------------------------------------

def svd_of_product(A, B, scale: float):
    """U (out, r), S (r,), Vh (r, in) of dW = s B A, without making the (out, in) matrix.

        B = Q1 R1       A^T = Q2 R2             Q1 (out, r) and Q2 (in, r): orthonormal columns
        dW = Q1 (s R1 R2^T) Q2^T                what is in brackets is (r, r): its SVD is dW's

    For a layer 896 -> 4864 at r = 8 this takes 2 ms, and the SVD of the whole matrix 0.8 s.
    """
    Q1, R1 = torch.linalg.qr(B.double())
    Q2, R2 = torch.linalg.qr(A.double().T)
    U, S, Vh = torch.linalg.svd(scale * R1 @ R2.T, full_matrices=False)
    return (Q1 @ U).float(), S.float(), (Vh @ Q2.T).float()


def effective_rank(S):
    """exp(entropy of p), p = S / sum(S): r for r equal singular values, 1 if one has it all."""
    p = S / S.sum()
    return torch.special.entr(p).sum().exp()     # entr(p) = -p log p, and 0 for p = 0


def share_held(S):
    """The share of ||dW||^2 in the top 1, 2, 3 ... directions. No dW' of that rank holds more.

        sum of S_i^2 over i <= r  /  ||dW||^2           (Eckart and Young)
    """
    return S.square().cumsum(0) / S.square().sum()


@functools.cache
def random_spectrum(n_out: int, n_in: int):
    """The singular values of a Gaussian matrix."""
    return torch.linalg.svdvals(seeded_normal(n_out, n_in))


# ----- a change and its W: section 7.3 ------------------------------------------------------------

def norm_through(W, U, Vh):
    """||U^T W V||_F: how much of W (out, in) lies in the directions U (out, r) and Vh (r, in).

    GPT-3's W_q, layer 48, r = 4 (table 7): ||W|| = 61.95, ||dW|| = 6.91, and ||U^T W V|| is

        21.67 for W's own top directions            sqrt(S_1^2 + ... + S_r^2)
         0.32 for dW's                              amplification ||dW|| / 0.32 = 21.6
         0.02 for random ones                       about r ||W|| / sqrt(out in)

    So dW does not repeat what W does most. It takes directions in which W does little, though more
    than in random ones, and does 21.6 times as much there. (The paper prints 21.5.)
    """
    return (U.T @ W @ Vh.T).norm()                                          # (r, r) before


def random_directions(n_out: int, n_in: int, r: int):
    """U (out, r) and Vh (r, in) of a random matrix."""
    U = torch.linalg.qr(seeded_normal(n_out, r, seed=1)).Q
    V = torch.linalg.qr(seeded_normal(n_in, r, seed=2)).Q
    return U, V.T


def count_intruders(U_base, U_tuned):
    """How many of the top 10 directions of W + dW resemble none of W's.

        max over i of |cos(u_i of W, u_j of W + dW)| < 0.5,  j <= 10

    The columns (out, .) are left singular vectors, as in 2410.21228. A strong dW in a direction
    that W lacks becomes a top direction of the sum, and that is an intruder.
    """
    cosines = (U_base.T @ U_tuned[:, :TOP]).abs()                           # (., 10)
    return (cosines.amax(0) < EPSILON).sum()
