//! What the tests of the binary share: tiny data, a tiny configuration, and ways to run `ldm` and look at what it left.

// Each test binary uses a part of it.
#![allow(dead_code)]

pub(crate) mod pictures;
pub(crate) mod refusals;
pub(crate) mod runs;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use image::{Rgb, RgbImage};

/// Models that train in seconds, with every part that a real one has: all loss terms but the perceptual one, a
/// discriminator from step 3 on, averages, accumulated gradients, captions and their dropout.
pub(crate) const CONFIG: &str = r#"
seed = 5

[data]
resolution = 32
flip = 0.5
validation = 0.2
workers = 2

[stage1.training]
steps = 8
batch_size = 2
accumulation = 2
lr = { rate = 1e-3, warmup_steps = 2, decay = "cosine" }
optimizer = { weight_decay = 0.01 }
max_grad_norm = 1.0
ema_decay = 0.9
checkpoint_every = 2
sample_every = 5

[stage1.vae]
block_out_channels = [8, 8, 16]
down_block_types = ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"]
up_block_types = ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"]
layers_per_block = 1
latent_channels = 2
norm_num_groups = 4

[stage1.loss]
perceptual_weight = 0.0
disc_start = 3
disc_layers = 2
disc_channels = 8

[stage2.training]
steps = 8
batch_size = 2
accumulation = 2
lr = { rate = 1e-3 }
optimizer = {}
max_grad_norm = 1.0
ema_decay = 0.9
checkpoint_every = 2
sample_every = 5

[stage2.unet]
_class_name = "UNet2DConditionModel"
sample_size = 8
in_channels = 2
out_channels = 2
block_out_channels = [8, 16]
down_block_types = ["CrossAttnDownBlock2D", "DownBlock2D"]
up_block_types = ["UpBlock2D", "CrossAttnUpBlock2D"]
layers_per_block = 1
cross_attention_dim = 8
attention_head_dim = 2
norm_num_groups = 4

[stage2.text]
dropout = 0.2

[stage2.text.bert]
max_position_embeddings = 8
encoder_layers = 1
encoder_ffn_dim = 16
encoder_attention_heads = 2
head_dim = 4
d_model = 8
to_logits = false

[stage2.preview]
count = 2
steps = 2
"#;

/// [`CONFIG`] with a codebook in place of the KL divergence.
pub(crate) fn vq_config() -> String {
    CONFIG.replace("[stage1.vae]", "[stage1.vq]\nnum_vq_embeddings = 32")
}

/// A folder of its own for one test, with a data set and a configuration in it.
pub(crate) struct Workspace {
    dir: tempfile::TempDir,
}

impl Workspace {
    /// Ten pictures with captions in `data/`, and [`CONFIG`] as `tiny.toml`.
    pub(crate) fn new() -> Self {
        let workspace = Self::empty();
        write_pictures(&workspace.path("data"), 10);
        workspace.write("tiny.toml", CONFIG);
        workspace
    }

    pub(crate) fn empty() -> Self {
        let dir = tempfile::tempdir().expect("the system has a folder for temporary files");
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the folders that lead to it.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is below the workspace")).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The program, to be started in this folder, with arguments separated by spaces.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        self.command_of(&arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// The program, to be started in this folder.
    pub(crate) fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ldm"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        // No test may depend on the network or wait for it.
        command.env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Runs the program to its end, successful or not.
    pub(crate) fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().expect("the binary starts")
    }

    /// Runs the program, which must succeed, and returns its standard output.
    pub(crate) fn run(&self, arguments: &str) -> String {
        succeeded(self.output(arguments))
    }

    /// Content of every file below `name`, by path relative to it; empty if there is no such folder.
    pub(crate) fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(name);
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        files
    }
}

/// Standard output of a program that must have succeeded.
pub(crate) fn succeeded(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}:\n{}",
        output.status,
        stderr(&output)
    );
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// What a program wrote to standard error.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `count` different pictures of 40x36 pixels with a caption each.
pub(crate) fn write_pictures(folder: &Path, count: u32) {
    fs::create_dir_all(folder).unwrap();
    let mut metadata = String::new();
    for number in 0..count {
        let picture = RgbImage::from_fn(40, 36, |x, y| {
            let inside = (x / 4 + number) % 3 == 0 || y / 9 == number % 4;
            let level = if inside { 220 } else { 30 };
            Rgb([level, (20 * number) as u8, (6 * x) as u8])
        });
        picture.save(folder.join(format!("{number}.png"))).unwrap();
        metadata += &format!(
            "{{\"file_name\": \"{number}.png\", \"text\": \"picture number {number}\"}}\n"
        );
    }
    fs::write(folder.join("metadata.jsonl"), metadata).unwrap();
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).expect("found below the root");
            files.insert(
                name.to_string_lossy().replace('\\', "/"),
                fs::read(&path).unwrap(),
            );
        }
    }
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}
