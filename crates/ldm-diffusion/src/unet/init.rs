//! Zero initialisation: a residual branch whose last layer is 0 starts as the identity.

use burn::{
    nn::{Initializer, Linear, conv::Conv2d},
    prelude::*,
};

/// `conv` with weight and bias 0. The weights it had are never drawn, as parameters initialise on first use.
pub(super) fn zeroed_conv(mut conv: Conv2d, device: &Device) -> Conv2d {
    conv.weight = Initializer::Zeros.init(conv.weight.lazy_shape(), device);
    conv.bias = (conv.bias).map(|bias| Initializer::Zeros.init(bias.lazy_shape(), device));
    conv
}

/// `linear` with weight and bias 0.
pub(super) fn zeroed_linear(mut linear: Linear, device: &Device) -> Linear {
    linear.weight = Initializer::Zeros.init(linear.weight.lazy_shape(), device);
    linear.bias = (linear.bias).map(|bias| Initializer::Zeros.init(bias.lazy_shape(), device));
    linear
}
