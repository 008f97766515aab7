//! Training in bf16 with master weights in f32 (Micikevicius et al. 2018, "Mixed precision training").
//!
//! The optimiser, the average and the checkpoints hold the master weights and know nothing of this. A step computes on a copy
//! in bf16; its gradients return to the masters in f32. There is no scaling of the loss: bf16 has the exponents of f32.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Device, FloatDType, Tensor},
};

use super::Stage;
use crate::{config::Precision, error::Error};

/// Modules whose parameters, and those below them, stay in f32: norms, and a codebook, whose codes are told apart by small
/// distances.
const KEPT: [&str; 3] = [
    "Struct:GroupNorm",
    "Struct:LayerNorm",
    "Struct:VectorQuantizer",
];

impl Precision {
    /// Finds out whether the device has this type.
    ///
    /// # Errors
    /// If it hasn't.
    pub(super) fn check(self, stage: Stage, device: &Device) -> Result<(), Error> {
        if self == Self::F32 || device.supports_dtype(FloatDType::BF16) {
            return Ok(());
        }
        let section = stage.folder();
        Err(Error::Request(format!(
            "`{section}.training.precision` is \"bf16\", which this device can't compute in: set it to \"f32\", or choose another device"
        )))
    }

    /// What a step of `master` computes on; `None` is the master itself.
    pub(super) fn working_copy<M: Module>(self, master: &M) -> Option<M> {
        (self == Self::Bf16).then(|| master.valid().map(&mut Narrow::default()).train())
    }

    /// Gradients of a working copy as those of `master`.
    pub(super) fn to_master<M: Module>(
        self,
        master: &M,
        mut gradients: GradientsParams,
    ) -> GradientsParams {
        if self == Self::Bf16 {
            master.visit(&mut Widen(&mut gradients));
        }
        gradients
    }
}

/// Casts parameters to bf16.
#[derive(Default)]
struct Narrow {
    /// The types of the modules that lead to a parameter.
    path: Vec<String>,
}

impl ModuleMapper for Narrow {
    fn enter_module(&mut self, _name: &str, container_type: &str) {
        self.path.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self
            .path
            .iter()
            .any(|module| KEPT.contains(&module.as_str()))
        {
            true => param,
            false => param.map(|tensor| tensor.cast(FloatDType::BF16)),
        }
    }
}

/// Casts gradients to f32.
struct Widen<'a>(&'a mut GradientsParams);

impl ModuleVisitor for Widen<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.0.remove::<D>(param.id) {
            self.0.register(param.id, gradient.cast(FloatDType::F32));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;
    use ldm_autoencoder::{
        AutoencoderKlConfig, PatchDiscriminatorConfig, Stage1LossConfig, Stage1Objective,
        VqModelConfig,
    };
    use ldm_diffusion::{
        DiffusionLossConfig, UNetConfig,
        unet::{DownBlockType, PerLevel, UpBlockType},
    };
    use ldm_nn::Activations;
    use ldm_text::LdmBertConfig;

    use super::*;
    use crate::{
        config::NoiseConfig,
        model::{Conditioner, ConditionerConfig, Denoiser},
        test_tensors::values,
    };

    /// Gives every parameter a value, none of the matrices 0, of about the size that training would.
    fn filled<M: Module>(module: M) -> M {
        struct Fill {
            number: u64,
            field: String,
        }
        impl ModuleMapper for Fill {
            fn enter_module(&mut self, name: &str, _container_type: &str) {
                name.clone_into(&mut self.field);
            }

            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                self.number += 1;
                let (number, centre) = (self.number, f64::from(self.field == "gamma"));
                param.map(|tensor| {
                    let dims = tensor.dims();
                    let scale = match D {
                        1 => 0.02,
                        4 => (dims[1..].iter().product::<usize>() as f64).powf(-0.5),
                        _ => (dims[0] as f64).powf(-0.5),
                    };
                    (values(dims, number).mul_scalar(scale).add_scalar(centre))
                        .autodiff()
                        .require_grad()
                })
            }
        }
        module.map(&mut Fill {
            number: 10,
            field: String::new(),
        })
    }

    /// All gradients in one row; they have to be f32.
    fn flat(master: &impl Module, gradients: &GradientsParams) -> Vec<f64> {
        struct Flat<'a>(&'a GradientsParams, Vec<f64>);
        impl ModuleVisitor for Flat<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                assert_eq!(param.val().dtype(), DType::F32);
                let gradient = self.0.get::<D>(param.id).expect("a gradient");
                assert_eq!(gradient.dtype(), DType::F32);
                self.1.extend(gradient.into_data().iter::<f64>());
            }
        }
        let mut flat = Flat(gradients, Vec::new());
        master.visit(&mut flat);
        flat.1
    }

    #[track_caller]
    fn assert_near(exact: (f64, Vec<f64>), rounded: (f64, Vec<f64>)) {
        let error = (rounded.0 - exact.0).abs() / exact.0.abs();
        assert!(
            error > 0.0 && error < 0.02,
            "loss {} or {}",
            exact.0,
            rounded.0
        );
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(&exact.1, &rounded.1)
            / (dot(&exact.1, &exact.1) * dot(&rounded.1, &rounded.1)).sqrt();
        assert!(cosine > 0.99, "cosine {cosine}");
    }

    #[test]
    fn a_denoiser_in_bf16_learns_about_the_same() {
        let device = Device::flex().autodiff();
        let unet = UNetConfig {
            norm_num_groups: 4,
            layers_per_block: 1,
            attention_head_dim: Some(PerLevel::All(2)),
            ..UNetConfig::conditional(
                4,
                12,
                vec![8, 16],
                vec![
                    DownBlockType::CrossAttnDownBlock2D,
                    DownBlockType::DownBlock2D,
                ],
                vec![UpBlockType::UpBlock2D, UpBlockType::CrossAttnUpBlock2D],
            )
        };
        let bert = LdmBertConfig {
            vocab_size: 11,
            max_position_embeddings: 5,
            encoder_layers: 1,
            encoder_ffn_dim: 16,
            encoder_attention_heads: 2,
            head_dim: 4,
            d_model: 12,
            to_logits: false,
            ..LdmBertConfig::default()
        };
        let master = filled(Denoiser {
            unet: unet.init(&device),
            conditioner: Some(ConditionerConfig::LdmBert(bert).init(&device)),
        });
        let loss = DiffusionLossConfig::default();
        let schedule = NoiseConfig::default().scheduler(&loss).noise_schedule();
        let loss = loss.init(schedule.unwrap()).unwrap();
        let (x0, noise) = (values([2, 4, 8, 8], 1), values([2, 4, 8, 8], 2));
        let run = |precision: Precision, activations| {
            let copy = precision.working_copy(&master);
            let mut denoiser = copy.unwrap_or_else(|| master.clone());
            denoiser.unet = denoiser.unet.with_activations(activations);
            let Some(Conditioner::LdmBert(bert)) = &denoiser.conditioner else {
                panic!("the text transformer")
            };
            let ids = Tensor::from_data([[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]], &Device::flex());
            let timesteps = [3, 700];
            let output = denoiser.unet.forward(
                loss.schedule()
                    .add_noise(x0.clone(), noise.clone(), &timesteps),
                Tensor::from_floats([3.0, 700.0], &Device::flex()),
                Some(bert.forward(ids)),
            );
            assert_eq!(output.dtype(), DType::F32);
            let loss = loss
                .forward(output, x0.clone(), noise.clone(), &timesteps)
                .loss;
            let value: f32 = loss.clone().into_scalar();
            let gradients = GradientsParams::from_grads(loss.backward(), &denoiser);
            let gradients = precision.to_master(&master, gradients);
            (f64::from(value), flat(&master, &gradients))
        };
        let exact = run(Precision::F32, Activations::Keep);
        for activations in [Activations::Keep, Activations::Recompute] {
            assert_near(exact.clone(), run(Precision::Bf16, activations));
        }
    }

    #[test]
    fn an_autoencoder_in_bf16_learns_about_the_same() {
        let device = Device::flex().autodiff();
        let config = AutoencoderKlConfig {
            norm_num_groups: 4,
            ..AutoencoderKlConfig::new(vec![8, 16], 4, 1)
        };
        let master = filled(config.init(&device));
        let disc = PatchDiscriminatorConfig {
            channels: 8,
            ..PatchDiscriminatorConfig::default()
        };
        let discriminator = filled(disc.init(&device));
        let objective = Stage1LossConfig {
            perceptual_weight: 0.0,
            disc_start: 0,
            ..Stage1LossConfig::default()
        };
        let objective = Stage1Objective::new(objective, None).unwrap();
        let (images, noise) = (values([2, 3, 32, 32], 1).tanh(), values([2, 4, 16, 16], 2));
        let run = |precision: Precision, discriminator| {
            let copy = precision.working_copy(&master);
            let (images, noise) = (images.clone(), noise.clone());
            let model = copy.as_ref().unwrap_or(&master);
            let step = objective.generator(model, discriminator, images, noise, 1);
            let gradients = precision.to_master(&master, step.grads);
            (step.terms, flat(&master, &gradients))
        };
        let likelihood = |precision| {
            let (terms, gradients) = run(precision, None);
            (f64::from(terms.nll), gradients)
        };
        assert_near(likelihood(Precision::F32), likelihood(Precision::Bf16));

        // The discriminator is f32, but an untrained one answers to the rounding of what it is shown.
        let weight = |precision| run(precision, Some(&discriminator)).0.d_weight;
        let (exact, rounded) = (weight(Precision::F32), weight(Precision::Bf16));
        let error = (rounded - exact).abs() / exact;
        assert!(exact > 0.0 && error < 0.05, "{exact} or {rounded}");
    }

    #[test]
    fn norms_and_codes_stay_in_f32() {
        let vq: VqModelConfig = serde_json::from_str(
            r#"{
                "block_out_channels": [8],
                "down_block_types": ["DownEncoderBlock2D"],
                "up_block_types": ["UpDecoderBlock2D"],
                "latent_channels": 4,
                "norm_num_groups": 4
            }"#,
        )
        .unwrap();
        let master = vq.init(&Device::flex().autodiff());
        let copy = Precision::Bf16.working_copy(&master).unwrap();
        let conv = &copy.encoder.conv_in.weight;
        assert_eq!(conv.val().dtype(), DType::BF16);
        assert!(conv.is_require_grad());
        let norm = copy.encoder.conv_norm_out.gamma.as_ref().unwrap();
        assert_eq!(norm.val().dtype(), DType::F32);
        let codes = &copy.quantize.embedding.weight;
        assert_eq!(codes.val().dtype(), DType::F32);
        assert!(Precision::F32.working_copy(&master).is_none());
    }
}
