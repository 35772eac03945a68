"""Images, from where people have them to the batches that a network sees.

To make a store: `sources` reads an image set in any layout, `decode` turns an image file into a
square, `prepare` puts both together, and `shapes` renders a set that needs no source.

To train from it: `store` reads the prepared images, `loader` reads batches ahead in `threads`,
`augment` crops and colors them on the device, and `datamodule` is what Lightning sees of all this.
"""
