"""What stands below each figure, and the names of files."""

from __future__ import annotations

# File names that differ by more than case.
FILES = {"N": "sweep-retraining-samples", "n": "sweep-test-samples", "rank": "test-rank"}
PUBLISHED = (
    "As published, faults included: noise of standard deviation sigma^2, an SR learner that carries frozen "
    "random adapters, 3000 outer steps however far they get."
)
PUBLISHED_RANK = (
    "Reduced-rank solutions for the A that each method's 3000 steps give; dashed: the floor of the noise as "
    "it was."
)
SHALLOW = (
    "y = c' sigmoid((A* + U U') x) + noise; error to clean targets on the n inputs, median and range of the "
    "trials. Corrected protocol: retraining ends once no net improves by 0.5 % in 2,000 epochs."
)
CAPTIONS = {
    "d": "Five draws a value, mean and min-max band; dashed: the reduced-rank solution for that A and data. LoRA-ML "
    "falls to the floor of the noise at every width, SR stays orders of magnitude above it.",
    "T": "At T = 2 both methods have rank 3k and end at the same loss; from T = 3 on SR stays above LoRA-ML.",
    "N": "More retraining samples lower LoRA-ML's end point; SR stays where Eckart-Young puts it.",
    "n": "The loss sums over the n inputs, so SR's plateau grows with n.",
    "k": "At k = 3, k(T+1) = 12 exceeds d = 10: the residual of SR has rank d.",
    "rank": "Reduced-rank solutions. SR's loss falls in a staircase down to r = k(T+1); "
    "LoRA-ML's is at the floor at r = k, and spare rank fits noise.",
    "tie": "SR's residual and LoRA-ML's both have rank 3k at T = 2: no gap is left there.",
    "meta-learners": "Finite-sample solutions (N = 5000, five inner steps at rate 0.5; iMAML's weight 0.5). "
    "MAML's small offset is the sampled covariances' (theorem 6 needs them equal).",
    "test-error": "200 draws, A without retraining error. The line is reached at n >> d only.",
    "retraining-error": "8 draws, T = 3 and 16; distance from each method's own limit (SR's is A* + mean R). "
    "SR's constant grows as 1 - 1/T.",
    "covariance": "50 draws, T = 3, five inner steps at rate 0.3. At s = 0 all coincide with SR.",
    "landscape": "Descents from the published starts, on three tasks (d = 5, k = 1) that have a spurious minimum and "
    "on the first two of them, population losses; 0 is shown as 1e-30. At T = 2 a descent that is not at 0 has run off "
    "along the family of theorem 4, which has no end.",
    "shallow-d": SHALLOW,
    "shallow-T": SHALLOW,
}
