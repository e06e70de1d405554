"""The theorem checks: each draws random instances, measures a quantity, and holds it to a bound.

Checks take what the statement claims or supposes (a rank, a constant, a number of tasks, a common covariance) as
an argument whose default is right, so that a test can pass a wrong one and see the check fail.
"""
