//! What the figures of `metrics.jsonl` mean to a reader of the page. A figure that isn't listed is drawn under its own name.

/// A chart's heading and place.
#[derive(Clone)]
pub(super) struct Figure {
    /// Order on the page.
    pub(super) rank: usize,
    pub(super) section: &'static str,
    /// The name that the figures of the chart share.
    pub(super) family: String,
    pub(super) title: String,
    /// What it measures, in a few words.
    pub(super) about: &'static str,
    /// Whether it is set and not measured, so that smoothing would only falsify it.
    pub(super) exact: bool,
}

const OBJECTIVE: &str = "Objective and validation";
const ADVERSARIAL: &str = "Discriminator";
const LATENT: &str = "Latent space";
const UPDATES: &str = "Gradients and updates";
const PACE: &str = "Rate and pace";
const OTHER: &str = "Other figures";

/// Family, section, title, what it measures.
const KNOWN: &[(&str, &str, &str, &str)] = &[
    ("loss", OBJECTIVE, "Loss", "the denoiser’s objective"),
    (
        "total",
        OBJECTIVE,
        "Total loss",
        "what the autoencoder minimises",
    ),
    (
        "rec",
        OBJECTIVE,
        "Reconstruction",
        "pixel distance, mean over the elements",
    ),
    (
        "perceptual",
        OBJECTIVE,
        "Perceptual distance",
        "before its weight",
    ),
    (
        "nll",
        OBJECTIVE,
        "Likelihood term",
        "pixel and perceptual distance together",
    ),
    (
        "kl",
        OBJECTIVE,
        "KL divergence",
        "per image, before its weight",
    ),
    (
        "codebook",
        OBJECTIVE,
        "Codebook",
        "distance between latents and their codes",
    ),
    (
        "codes_used",
        OBJECTIVE,
        "Codes in use",
        "share of the codebook that a batch uses",
    ),
    (
        "val_psnr",
        OBJECTIVE,
        "PSNR",
        "of held-out images, in dB; higher is better",
    ),
    (
        "val_loss",
        OBJECTIVE,
        "Validation loss",
        "on held-out images; by range of timesteps",
    ),
    (
        "disc_accuracy",
        ADVERSARIAL,
        "Accuracy",
        "share of patches judged rightly; 0.5 is guessing",
    ),
    (
        "logits",
        ADVERSARIAL,
        "Logits",
        "mean for images and for reconstructions",
    ),
    ("disc_loss", ADVERSARIAL, "Discriminator loss", ""),
    (
        "g_loss",
        ADVERSARIAL,
        "Adversarial loss",
        "the autoencoder’s, before its weights",
    ),
    (
        "d_weight",
        ADVERSARIAL,
        "Adaptive weight",
        "of the adversarial loss",
    ),
    (
        "disc_factor",
        ADVERSARIAL,
        "Discriminator factor",
        "0 before the discriminator starts",
    ),
    (
        "posterior_mean",
        LATENT,
        "Posterior mean",
        "by latent channel",
    ),
    (
        "posterior_std",
        LATENT,
        "Posterior deviation",
        "by latent channel",
    ),
    (
        "posterior_max",
        LATENT,
        "Largest latent",
        "by latent channel",
    ),
    ("grad_norm", UPDATES, "Gradient norm", "before clipping"),
    (
        "update_norm",
        UPDATES,
        "Update norm",
        "length of a step of the weights",
    ),
    (
        "disc_grad_norm",
        UPDATES,
        "Discriminator’s gradient norm",
        "before clipping",
    ),
    (
        "disc_update_norm",
        UPDATES,
        "Discriminator’s update norm",
        "",
    ),
    ("lr", PACE, "Learning rate", ""),
    ("rate_scale", PACE, "Rate scale", "factor after roll-backs"),
    ("seconds_per_step", PACE, "Time per step", "seconds"),
    ("images_per_second", PACE, "Throughput", "images per second"),
    (
        "data_wait_seconds",
        PACE,
        "Waiting for data",
        "seconds of a step",
    ),
    ("memory_mib", PACE, "Memory", "MiB"),
];

const EXACT: [&str; 3] = ["lr", "disc_factor", "rate_scale"];

/// The chart that the figure `name` belongs to: what stands before a slash.
pub(super) fn family(name: &str) -> &str {
    match name {
        "logits_real" | "logits_fake" => "logits",
        name => name.split_once('/').map_or(name, |(family, _)| family),
    }
}

/// Heading and place of a family's chart.
pub(super) fn of(family: &str) -> Figure {
    let known = (KNOWN.iter().enumerate()).find(|(_, known)| known.0 == family);
    let (rank, section, title, about) = match known {
        Some((rank, &(_, section, title, about))) => (rank, section, title, about),
        None => (KNOWN.len(), OTHER, family, ""),
    };
    Figure {
        rank,
        section,
        family: family.into(),
        title: title.into(),
        about,
        exact: EXACT.contains(&family),
    }
}

/// What to call the figure `name` in the middle of a phrase.
pub(super) fn within(name: &str) -> String {
    let title = of(name).title;
    // Not `PSNR`.
    let is_word = title.chars().nth(1).is_some_and(char::is_lowercase);
    let mut chars = title.chars();
    match chars.next() {
        Some(first) if is_word => first.to_lowercase().chain(chars).collect(),
        _ => title,
    }
}
