//! Damaged files for every reader of foreign files: none may panic, and none allocate more than twice the file's size and
//! a constant. The test of this name makes some thousands, the example `fuzz_readers` as many as it has time for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use burn::tensor::TensorData;
use ldm_pipeline::autoencoder::{AutoencoderKlConfig, VqModelConfig};
use ldm_pipeline::diffusion::{SchedulerConfig, UNetConfig};
use ldm_pipeline::model::ModelFiles;
use ldm_pipeline::text::LdmBertConfig;
use ldm_pipeline::weights::{self, Tensors};

/// What a reader may allocate beside twice the size of the file.
const CONSTANT: usize = 5 << 20;
/// Numbers that readers stumble over.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fff8,
    u64::MAX,
];

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting.
pub(crate) struct Counting;

fn grow(by: usize) {
    let live = LIVE.fetch_add(by, Relaxed) + by;
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both exist for a moment.
        grow(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// A reader and good files for it.
pub(crate) struct Target {
    /// What it reads.
    pub(crate) name: &'static str,
    /// What its files are called.
    file: &'static str,
    /// Contents of good files.
    pub(crate) seeds: Vec<Vec<u8>>,
    /// Reads a file, and whatever it can of its content.
    read: fn(&Path),
}

/// All readers; `dir` is for their files.
pub(crate) fn targets(dir: &Path) -> Vec<Target> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/torch");
    let seeds = |names: &[&str]| {
        let contents = names
            .iter()
            .map(|name| fs::read(fixtures.join(name)).unwrap());
        contents.collect::<Vec<_>>()
    };
    for shard in [
        "model-00001-of-00002.safetensors",
        "pytorch_model-00002-of-00002.bin",
    ] {
        fs::copy(fixtures.join(shard), dir.join(shard)).unwrap();
    }
    vec![
        Target {
            name: "safetensors",
            file: "model.safetensors",
            seeds: vec![safetensors(dir)],
            read: read_weights,
        },
        Target {
            name: "PyTorch archive",
            file: "model.ckpt",
            seeds: seeds(&[
                "lightning_style.ckpt",
                "strides.pt",
                "protocol4.pt",
                "dtypes.pt",
                "objects.ckpt",
                "python2.pt",
                "unread.pt",
            ]),
            read: read_weights,
        },
        Target {
            name: "old PyTorch file",
            file: "model.pt",
            seeds: seeds(&["legacy.pt"]),
            read: read_weights,
        },
        Target {
            name: "index",
            file: "model.safetensors.index.json",
            seeds: seeds(&["model.safetensors.index.json"]),
            read: read_weights,
        },
        Target {
            name: "yaml",
            file: "model.yaml",
            seeds: ["class-vq-f4", "semantic-vq-f4", "text-kl-f8", "uncond-kl"]
                .map(|name| fs::read(compvis(name, "config.yaml")).unwrap())
                .to_vec(),
            read: read_yaml,
        },
        Target {
            name: "configuration",
            file: "config.json",
            seeds: [
                "ldm-uncond/unet/config.json",
                "ldm-uncond/vqvae/config.json",
                "ldm-uncond/scheduler/scheduler_config.json",
                "ldm-text2im/bert/config.json",
            ]
            .map(|name| fs::read(fixtures.join("../diffusers").join(name)).unwrap())
            .to_vec(),
            read: read_configuration,
        },
    ]
}

/// A file of one of the original code's models.
fn compvis(name: &str, file: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/compvis");
    fixtures.join(name).join(file)
}

/// Opens a checkpoint by a damaged description.
fn read_yaml(path: &Path) {
    let _ = ModelFiles::open(&compvis("class-vq-f4", "model.ckpt"), Some(path));
}

/// Reads a file as every kind of configuration.
fn read_configuration(path: &Path) {
    let Ok(text) = fs::read_to_string(path) else {
        return;
    };
    let _ = UNetConfig::from_json(&text);
    if let Ok(config) = SchedulerConfig::from_json(&text) {
        let _ = config.noise_schedule();
    }
    let vae = serde_json::from_str::<AutoencoderKlConfig>(&text);
    let _ = vae.map(|config| config.validate());
    let vq = serde_json::from_str::<VqModelConfig>(&text);
    let _ = vq.map(|config| config.validate());
    let bert = serde_json::from_str::<LdmBertConfig>(&text);
    let _ = bert.map(|config| config.validate());
}

/// A small file with several tensors and text.
fn safetensors(dir: &Path) -> Vec<u8> {
    let path = dir.join("seed.safetensors");
    let mut tensors = Tensors::default();
    for (name, shape) in [
        ("conv.weight", vec![2, 3, 1, 1]),
        ("bias", vec![5]),
        ("scalar", vec![]),
    ] {
        let elements: usize = shape.iter().product();
        tensors.insert(name, TensorData::new(vec![1.5f32; elements], shape));
    }
    tensors.insert("ids", TensorData::new(vec![1i64, 2, 3], [3]));
    let text = [("step".to_owned(), "12".to_owned())].into();
    weights::write(&path, &tensors, &text).unwrap();
    fs::read(path).unwrap()
}

fn read_weights(path: &Path) {
    if let Ok(tensors) = weights::open(path) {
        for name in tensors.names() {
            let _ = tensors.data(name);
        }
        let _ = weights::with_ema(&tensors);
    }
}

impl Target {
    /// Has `content` read, and says what went wrong.
    pub(crate) fn check(&self, dir: &Path, content: &[u8]) -> Result<(), String> {
        let path: PathBuf = dir.join(self.file);
        // Writing over a file would wait for the disk.
        let _ = fs::remove_file(&path);
        fs::write(&path, content).map_err(|error| error.to_string())?;
        let before = LIVE.load(Relaxed);
        PEAK.store(before, Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| (self.read)(&path)));
        let used = PEAK.load(Relaxed).saturating_sub(before);
        if result.is_err() {
            return Err(format!("{}: a panic", self.name));
        }
        let allowed = 2 * content.len() + CONSTANT;
        if used > allowed {
            return Err(format!(
                "{}: {used} bytes allocated for a file of {}",
                self.name,
                content.len()
            ));
        }
        Ok(())
    }
}

/// A small generator (xorshift64*): what is tested must not depend on the program's own.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `bound`, which isn't 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A damaged copy of one of `seeds`.
pub(crate) fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    for _ in 0..1 + random.below(4) {
        if bytes.is_empty() {
            break;
        }
        // Descriptions are mostly at the beginning.
        let reach = match random.below(2) {
            0 => bytes.len(),
            _ => bytes.len().min(1500),
        };
        let at = random.below(reach);
        let len = 1 + random.below(16.min(bytes.len() - at));
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.next() as u8,
            2 => bytes[at..at + len].fill(random.next() as u8),
            3 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => {
                bytes.drain(at..at + len);
            }
            5 => {
                let copy = bytes[at..at + len].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            6 => {
                // A part of another file.
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len());
                let part = &other[from..other.len().min(from + 64)];
                let end = bytes.len().min(at + part.len());
                bytes.splice(at..end, part.iter().copied());
            }
            7 => {
                // Text that is a number becomes another number.
                if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                    let number = NUMBERS[random.below(NUMBERS.len())].to_string();
                    bytes.splice(at + digit..at + digit + 1, number.bytes());
                }
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}
