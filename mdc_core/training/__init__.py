"""Networks are trained on images, real or synthetic, and tested."""
