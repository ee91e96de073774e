"""Speed, peers, instruments and ablations: programs that print the tables of docs/results.md."""
