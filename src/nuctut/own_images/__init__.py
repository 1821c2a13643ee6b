"""A reader's own images: files of any kind in, labels and tables out; networks for other tools."""
