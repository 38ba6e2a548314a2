"""Dead letters as an operator handles them: listed, shown, replayed, dropped. Their only store is their topic."""
