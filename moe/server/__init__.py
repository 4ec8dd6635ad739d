"""The model over HTTP: a bounded queue, batches by token budget, metrics, a page."""
