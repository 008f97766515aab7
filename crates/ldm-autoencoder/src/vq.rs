use burn::{
    nn::conv::{Conv2d, Conv2dConfig},
    prelude::*,
};
use ldm_nn::ops;

use crate::{Decoder, Encoder, Quantized, VectorQuantizer, VqModelConfig, architecture, tiling};

/// Vector-quantised autoencoder (Esser et al. 2021), the first stage with "VQ regularisation" of Rombach et al. 2022
/// (section 3.1), under diffusers' `VQModel` names.
///
/// A diffusion model works on the latents before quantisation; the quantiser counts as the decoder's first layer.
#[derive(Module, Debug)]
pub struct VqModel {
    /// Images to latents.
    pub encoder: Encoder,
    /// Latents to images.
    pub decoder: Decoder,
    /// Latents to their nearest codes.
    pub quantize: VectorQuantizer,
    /// 1x1 convolution of the encoder's output.
    pub quant_conv: Conv2d,
    /// 1x1 convolution of the codes.
    pub post_quant_conv: Conv2d,
}

impl VqModel {
    pub(crate) fn new(config: &VqModelConfig, device: &Device) -> Self {
        let conv1x1 = |channels| Conv2dConfig::new(channels, [1, 1]).init(device);
        let (latent, code) = (config.latent_channels, config.embed_dim());
        Self {
            encoder: Encoder::new(config.architecture(), device),
            decoder: Decoder::new(config.architecture(), device),
            quantize: VectorQuantizer::new(config.num_vq_embeddings, code, device),
            quant_conv: conv1x1([latent, code]),
            post_quant_conv: conv1x1([code, latent]),
        }
    }

    /// Latents of images, before quantisation.
    ///
    /// # Shapes
    /// - `images`: `[N, 3, H, W]` in `[-1, 1]`; [`decode`](Self::decode) restores the size where [`factor`](Self::factor)
    ///   divides `H` and `W`
    /// - latents: `[N, c, H/f, W/f]`, not scaled by the scaling factor
    pub fn encode(&self, images: Tensor<4>) -> Tensor<4> {
        ops::to_f32(ops::conv2d(&self.quant_conv, self.encoder.forward(images)))
    }

    /// The nearest codes of latents `[N, c, h, w]`.
    pub fn quantize(&self, latents: Tensor<4>) -> Quantized {
        self.quantize.forward(latents)
    }

    /// Images of latents, which are quantised first: `[N, c, h, w]` to `[N, 3, f h, f w]`, around `[-1, 1]` but not clamped to it.
    ///
    /// Latents are as [`encode`](Self::encode) gives them: divide a diffusion model's by the scaling factor first.
    pub fn decode(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decode_quantized(self.quantize(latents).latents)
    }

    /// [`decode`](Self::decode) of latents that are codes, or shall be decoded as they are.
    pub fn decode_quantized(&self, latents: Tensor<4>) -> Tensor<4> {
        ops::to_f32(ops::conv2d(
            &self.decoder.conv_out,
            self.decode_features(latents),
        ))
    }

    /// What enters the decoder's last convolution, of latents that are codes: `[N, c, h, w]` to `[N, C, f h, f w]`.
    pub fn decode_features(&self, latents: Tensor<4>) -> Tensor<4> {
        self.decoder
            .features(ops::conv2d(&self.post_quant_conv, latents))
    }

    /// [`decode`](Self::decode) for large pictures, as [`AutoencoderKl::decode_tiled`](crate::AutoencoderKl::decode_tiled).
    ///
    /// # Panics
    /// If `tile` is below 2.
    pub fn decode_tiled(&self, latents: Tensor<4>, tile: usize) -> Tensor<4> {
        tiling::decode(latents, self.factor(), tile, |tile| self.decode(tile))
    }

    /// Pixels of an image per pixel of its latent, along one side: the `f` of the paper.
    pub fn factor(&self) -> usize {
        architecture::factor(self.encoder.down_blocks.len())
    }
}
