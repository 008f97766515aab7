use burn::{
    nn::conv::{Conv2d, Conv2dConfig},
    prelude::*,
};
use ldm_nn::ops;

use crate::{AutoencoderKlConfig, Decoder, DiagonalGaussian, Encoder, architecture, tiling};

/// KL-regularised autoencoder (Rombach et al. 2022, section 3.1 and appendix G), under diffusers' `AutoencoderKL` names.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    /// Images to moments.
    pub encoder: Encoder,
    /// Latents to images.
    pub decoder: Decoder,
    /// 1x1 convolution of the moments.
    pub quant_conv: Option<Conv2d>,
    /// 1x1 convolution of the latents.
    pub post_quant_conv: Option<Conv2d>,
}

impl AutoencoderKl {
    pub(crate) fn new(config: &AutoencoderKlConfig, device: &Device) -> Self {
        let conv1x1 = |channels| Conv2dConfig::new([channels, channels], [1, 1]).init(device);
        Self {
            encoder: Encoder::new(config.architecture(), device),
            decoder: Decoder::new(config.architecture(), device),
            quant_conv: config
                .use_quant_conv
                .then(|| conv1x1(2 * config.latent_channels)),
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| conv1x1(config.latent_channels)),
        }
    }

    /// The posterior `q(z|x)` of images.
    ///
    /// # Shapes
    /// - `images`: `[N, 3, H, W]` in `[-1, 1]`; [`decode`](Self::decode) restores the size where [`factor`](Self::factor)
    ///   divides `H` and `W`
    /// - latents of the posterior: `[N, c, H/f, W/f]`, not scaled by the scaling factor
    pub fn encode(&self, images: Tensor<4>) -> DiagonalGaussian {
        let moments = self.encoder.forward(images);
        DiagonalGaussian::from_moments(ops::to_f32(match &self.quant_conv {
            Some(conv) => ops::conv2d(conv, moments),
            None => moments,
        }))
    }

    /// Images of latents, `[N, c, h, w]` to `[N, 3, f h, f w]`; around `[-1, 1]` but not clamped to it.
    ///
    /// Latents are as [`encode`](Self::encode) gives them: divide a diffusion model's by the scaling factor first.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        ops::to_f32(ops::conv2d(
            &self.decoder.conv_out,
            self.decode_features(latents),
        ))
    }

    /// [`decode`](Self::decode) for large pictures: in tiles of `tile` latent pixels a side that overlap by a quarter, where they
    /// are blended. Memory beyond the picture's own is that of one tile; the result differs a little from `decode`'s,
    /// whose norms and attention see the whole picture. A picture no larger than a tile is decoded as a whole.
    ///
    /// # Panics
    /// If `tile` is below 2.
    pub fn decode_tiled(&self, latents: Tensor<4>, tile: usize) -> Tensor<4> {
        tiling::decode(latents, self.factor(), tile, |tile| self.decode(tile))
    }

    /// What enters the decoder's last convolution, `[N, c, h, w]` to `[N, C, f h, f w]`.
    ///
    /// The adaptive adversarial weight needs this cut: `decode` is `decoder.conv_out` of it.
    pub fn decode_features(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder.features(match &self.post_quant_conv {
            Some(conv) => ops::conv2d(conv, latents),
            None => latents,
        })
    }

    /// Pixels of an image per pixel of its latent, along one side: the `f` of the paper.
    pub fn factor(&self) -> usize {
        architecture::factor(self.encoder.down_blocks.len())
    }
}
