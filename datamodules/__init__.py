"""LightningDataModules for images, speech and series."""
