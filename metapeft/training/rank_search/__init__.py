"""The search for ranks: scores of terms, and the three methods that come to one rank a layer."""
