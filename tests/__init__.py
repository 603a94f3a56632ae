"""The harness: renders the template in every combination and proves each of them."""
