use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{
    Ddim, Ddpm, Dpm2, DpmMultistep, Euler, EulerAncestral, Heun, Lcm, Lms, Plms, Sampler, UniPc,
    invalid,
};
use crate::{AlgorithmType, Error, SchedulerConfig};

/// The samplers by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplerKind {
    /// [`Ddpm`].
    Ddpm,
    /// [`Ddim`].
    #[default]
    Ddim,
    /// [`Plms`].
    #[serde(alias = "pndm")]
    Plms,
    /// [`DpmMultistep`] of order 2.
    #[serde(rename = "dpm++2m")]
    DpmPlusPlus2M,
    /// [`DpmMultistep`] of order 3.
    #[serde(rename = "dpm++3m")]
    DpmPlusPlus3M,
    /// [`DpmMultistep`] of order 2 for the SDE.
    #[serde(rename = "sde-dpm++2m")]
    SdeDpmPlusPlus2M,
    /// [`Euler`].
    Euler,
    /// [`EulerAncestral`].
    #[serde(rename = "euler-a")]
    EulerAncestral,
    /// [`Heun`].
    Heun,
    /// [`Lms`].
    Lms,
    /// [`UniPc`].
    #[serde(rename = "unipc")]
    UniPc,
    /// [`Lcm`].
    Lcm,
    /// [`Dpm2`].
    Dpm2,
}

impl SamplerKind {
    /// All samplers.
    pub const ALL: [Self; 13] = [
        Self::Ddpm,
        Self::Ddim,
        Self::Plms,
        Self::DpmPlusPlus2M,
        Self::DpmPlusPlus3M,
        Self::SdeDpmPlusPlus2M,
        Self::Euler,
        Self::EulerAncestral,
        Self::Heun,
        Self::Lms,
        Self::UniPc,
        Self::Lcm,
        Self::Dpm2,
    ];

    /// The name that users know it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddpm => "ddpm",
            Self::Ddim => "ddim",
            Self::Plms => "plms",
            Self::DpmPlusPlus2M => "dpm++2m",
            Self::DpmPlusPlus3M => "dpm++3m",
            Self::SdeDpmPlusPlus2M => "sde-dpm++2m",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler-a",
            Self::Heun => "heun",
            Self::Lms => "lms",
            Self::UniPc => "unipc",
            Self::Lcm => "lcm",
            Self::Dpm2 => "dpm2",
        }
    }

    /// The sampler that is diffusers' class of this name, with the class's defaults.
    pub fn for_class(class_name: &str) -> Option<Self> {
        Some(match class_name {
            "DDPMScheduler" => Self::Ddpm,
            "DDIMScheduler" => Self::Ddim,
            "PNDMScheduler" => Self::Plms,
            "DPMSolverMultistepScheduler" => Self::DpmPlusPlus2M,
            "EulerDiscreteScheduler" => Self::Euler,
            "EulerAncestralDiscreteScheduler" => Self::EulerAncestral,
            "HeunDiscreteScheduler" => Self::Heun,
            "LMSDiscreteScheduler" => Self::Lms,
            "UniPCMultistepScheduler" => Self::UniPc,
            "LCMScheduler" => Self::Lcm,
            "KDPM2DiscreteScheduler" => Self::Dpm2,
            _ => return None,
        })
    }

    /// The sampler that `config` names, where it is one of these; DPM-Solver's by its algorithm and order.
    pub fn for_config(config: &SchedulerConfig) -> Option<Self> {
        let kind = Self::for_class(&config.class_name)?;
        if kind != Self::DpmPlusPlus2M {
            return Some(kind);
        }
        let solver = &config.solver;
        Some(match solver.algorithm_type.unwrap_or_default() {
            AlgorithmType::SdeDpm | AlgorithmType::SdeDpmPlusPlus => Self::SdeDpmPlusPlus2M,
            _ if solver.solver_order == Some(3) => Self::DpmPlusPlus3M,
            _ => kind,
        })
    }

    /// Prepares `steps` steps over the schedule of `config`. `eta` is [`Ddim`]'s; the others have no use for it.
    ///
    /// Keys of `config` that this sampler has count whatever class `config` is of, as with diffusers' `from_config`; but for
    /// another DPM-Solver than `config`'s own the name decides on algorithm and order.
    ///
    /// # Errors
    /// If `config` makes no schedule, has a value that this sampler can't do, or `steps` don't fit into it.
    pub fn build(
        self,
        config: &SchedulerConfig,
        steps: usize,
        eta: f64,
    ) -> Result<Box<dyn Sampler>, Error> {
        Ok(match self {
            Self::Ddpm => Box::new(Ddpm::new(config, steps)?),
            Self::Ddim => Box::new(Ddim::new(config, steps, eta)?),
            Self::Plms => Box::new(Plms::new(config, steps)?),
            Self::DpmPlusPlus2M | Self::DpmPlusPlus3M | Self::SdeDpmPlusPlus2M => {
                Box::new(DpmMultistep::new(&self.dpm_config(config), steps)?)
            }
            Self::Euler => Box::new(Euler::new(config, steps)?),
            Self::EulerAncestral => Box::new(EulerAncestral::new(config, steps)?),
            Self::Heun => Box::new(Heun::new(config, steps)?),
            Self::Lms => Box::new(Lms::new(config, steps)?),
            Self::UniPc => Box::new(UniPc::new(config, steps)?),
            Self::Lcm => Box::new(Lcm::new(config, steps)?),
            Self::Dpm2 => Box::new(Dpm2::new(config, steps)?),
        })
    }

    /// Whether it heeds `rescale_betas_zero_snr`; the others sample from the schedule before rescaling.
    pub fn knows_zero_snr(self) -> bool {
        !matches!(self, Self::Plms | Self::Heun | Self::Lms | Self::Dpm2)
    }

    /// `config` with the algorithm and the order that the name promises, unless it already names this sampler.
    fn dpm_config(self, config: &SchedulerConfig) -> SchedulerConfig {
        let mut config = config.clone();
        if Self::for_config(&config) != Some(self) {
            config.solver.solver_order = Some(if self == Self::DpmPlusPlus3M { 3 } else { 2 });
            config.solver.algorithm_type = Some(if self == Self::SdeDpmPlusPlus2M {
                AlgorithmType::SdeDpmPlusPlus
            } else {
                AlgorithmType::DpmPlusPlus
            });
        }
        config
    }
}

impl fmt::Display for SamplerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for SamplerKind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        if name == "pndm" {
            return Ok(Self::Plms);
        }
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                invalid(
                    "sampler",
                    format!("has no \"{name}\": choose one of {known}"),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SolverConfig;

    #[test]
    fn names_parse_and_are_serdes_names() {
        for kind in SamplerKind::ALL {
            assert_eq!(kind.to_string().parse::<SamplerKind>().unwrap(), kind);
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
        }
        assert_eq!("pndm".parse::<SamplerKind>().unwrap(), SamplerKind::Plms);
        let unknown = "dpmm".parse::<SamplerKind>().unwrap_err().to_string();
        assert!(unknown.contains("ddpm, ddim, plms"), "{unknown}");
    }

    #[test]
    fn a_dpm_solvers_name_follows_its_algorithm_and_order() {
        let config = |algorithm_type, solver_order| SchedulerConfig {
            class_name: "DPMSolverMultistepScheduler".into(),
            solver: SolverConfig {
                algorithm_type,
                solver_order,
                ..SolverConfig::default()
            },
            ..SchedulerConfig::default()
        };
        for (algorithm, order, name) in [
            (None, None, "dpm++2m"),
            (Some(AlgorithmType::Dpm), Some(1), "dpm++2m"),
            (Some(AlgorithmType::DpmPlusPlus), Some(3), "dpm++3m"),
            (Some(AlgorithmType::SdeDpmPlusPlus), Some(3), "sde-dpm++2m"),
        ] {
            let config = config(algorithm, order);
            let kind = SamplerKind::for_config(&config).unwrap();
            assert_eq!(kind.name(), name);
            assert_eq!(kind.dpm_config(&config), config);
        }
        let third = config(None, Some(3));
        let second = SamplerKind::DpmPlusPlus2M.dpm_config(&third);
        assert_eq!(second.solver.solver_order, Some(2));
        let sde = SamplerKind::SdeDpmPlusPlus2M.dpm_config(&third);
        assert_eq!(
            sde.solver.algorithm_type,
            Some(AlgorithmType::SdeDpmPlusPlus)
        );
        assert_eq!(SamplerKind::for_class("DEISMultistepScheduler"), None);
    }
}
