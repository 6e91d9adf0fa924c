"""The ladder: every recipe and every addition trained at equal compute and evaluated alike, with kept records."""
