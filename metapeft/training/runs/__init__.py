"""Run folders: what a run keeps on disk, who may write there, and a learner back from it."""
