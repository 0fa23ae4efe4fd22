"""The proof: an independent reference, a layer-wise network, the comparison, and its HTML report."""
