"""The theory suite: provable suboptimality of retraining, checked and drawn."""
