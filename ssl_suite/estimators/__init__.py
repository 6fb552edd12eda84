"""Estimators with the interface of scikit-learn, for data that fit into memory."""
