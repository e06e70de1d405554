"""The figures: their data (`sweeps`, `shallow_sweeps`, `extras`, as `rows`), how they are drawn, and the page."""
