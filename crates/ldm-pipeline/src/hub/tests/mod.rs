mod server;

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use tempfile::TempDir;

use self::server::{COMMIT, ID, Server, sha256};
use super::{Hub, HubError, OnProgress, parse_id, weights_file};

/// The smallest text-to-image model.
const MODEL: [(&str, &str); 11] = [
    (
        "model_index.json",
        r#"{"_class_name": "LDMTextToImagePipeline",
            "unet": ["diffusers", "UNet2DConditionModel"], "vqvae": ["diffusers", "AutoencoderKL"],
            "bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", "BertTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"], "feature_extractor": [null, null]}"#,
    ),
    ("unet/config.json", "{}"),
    ("unet/diffusion_pytorch_model.safetensors", "unet's weights"),
    ("unet/diffusion_pytorch_model.bin", "not wanted"),
    ("vqvae/config.json", "{}"),
    ("vqvae/diffusion_pytorch_model.bin", "autoencoder's weights"),
    ("bert/config.json", "{}"),
    ("bert/pytorch_model.bin", "text encoder's weights"),
    ("tokenizer/vocab.txt", "[PAD]"),
    ("scheduler/scheduler_config.json", "{\"beta_start\": 1}"),
    ("README.md", "not wanted"),
];

struct Client {
    hub: Hub,
    folder: TempDir,
}

fn client(server: &Server) -> Client {
    let folder = tempfile::tempdir().unwrap();
    Client {
        hub: Hub {
            endpoint: server.endpoint(),
            cache: folder.path().join("hub"),
            parts: folder.path().join("ldm"),
            token: None,
            offline: false,
        },
        folder,
    }
}

impl Client {
    fn model(&self) -> Result<PathBuf, HubError> {
        let dir = self.hub.model_dir(ID, &mut |_| {})?;
        Ok(dir.expect("an id"))
    }

    fn file(&self, name: &str) -> Result<PathBuf, HubError> {
        self.hub.file(parse_id(ID).unwrap(), name, &mut |_| {})
    }

    fn vgg16(&self) -> Result<PathBuf, HubError> {
        self.hub.vgg16(parse_id(ID).unwrap(), &mut |_| {})
    }

    /// The repository's folder in the cache.
    fn repository(&self) -> PathBuf {
        self.folder.path().join("hub/models--owner--name")
    }

    fn blob(&self, contents: &[u8]) -> PathBuf {
        self.repository().join("blobs").join(sha256(contents))
    }

    fn partial(&self, contents: &[u8]) -> PathBuf {
        self.blob(contents).with_extension("incomplete")
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

/// Bytes that don't repeat.
fn noise(length: u32) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(i) / 7 + i) as u8)
        .collect()
}

#[test]
fn ids_and_paths_are_told_apart() {
    let repo = parse_id("timm/vgg16.tv_in1k@refs/pr/1").unwrap();
    assert_eq!(
        (repo.url(), repo.revision()),
        ("timm/vgg16.tv_in1k".into(), "refs/pr/1")
    );
    for path in [
        "vgg.safetensors",
        "weights/vgg.safetensors",
        "weights/model.ckpt",
        "./a",
        "../a/b",
        "a//b",
        "/a/b",
        "a/b@../c",
        "a/b@",
    ] {
        assert!(parse_id(path).is_none(), "{path}");
    }
    let error = weights_file("no/such/file.safetensors", "model.safetensors").unwrap_err();
    assert!(
        error.to_string().contains("no/such/file.safetensors"),
        "{error}"
    );
}

#[test]
fn a_model_is_downloaded_with_what_it_needs() {
    let server = Server::start(MODEL);
    let client = client(&server);
    let mut heard = Vec::new();
    let on_progress: &mut OnProgress = &mut |progress| {
        heard.push((progress.file.to_owned(), progress.received, progress.total));
    };
    let dir = client.hub.model_dir(ID, on_progress).unwrap().unwrap();
    assert_eq!(dir, client.repository().join("snapshots").join(COMMIT));
    for (name, contents) in MODEL {
        let path = dir.join(name);
        match contents {
            "not wanted" => assert!(!path.exists(), "{name}"),
            contents => assert_eq!(read(&path), contents, "{name}"),
        }
    }
    // What other programs of the cache rely on.
    assert_eq!(read(&client.repository().join("refs/main")), COMMIT);
    let unet = "unet/diffusion_pytorch_model.safetensors";
    assert_eq!(
        fs::canonicalize(dir.join(unet)).unwrap(),
        fs::canonicalize(client.blob(b"unet's weights")).unwrap()
    );
    assert!(
        client
            .repository()
            .join(".no_exist")
            .join(COMMIT)
            .join("ldm.json")
            .is_file()
    );
    assert!(heard.contains(&(unet.to_owned(), 14, 14)), "{heard:?}");
    // After the first file all are asked for by commit.
    let by_branch = (server.requests().iter())
        .filter(|request| request.contains("/resolve/main/"))
        .count();
    assert_eq!(by_branch, 1, "{:?}", server.requests());

    let before = server.requests().len();
    assert_eq!(client.model().unwrap(), dir);
    assert_eq!(server.requests().len(), before, "all is in the cache");
}

#[test]
fn a_cached_model_needs_no_hub() {
    let server = Server::start(MODEL);
    let mut client = client(&server);
    let dir = client.model().unwrap();
    drop(server);
    client.hub.offline = true;
    assert_eq!(client.model().unwrap(), dir);
    // What the cache doesn't know of is taken for absent where it may be, and named where it mustn't.
    fs::remove_dir_all(client.repository().join(".no_exist")).unwrap();
    assert_eq!(client.model().unwrap(), dir);
    fs::remove_file(dir.join("vqvae/config.json")).unwrap();
    let error = client.model().unwrap_err();
    assert!(
        matches!(&error, HubError::Offline { file, .. } if file == "vqvae/config.json"),
        "{error}"
    );
    assert!(error.help().unwrap().contains("HF_HUB_OFFLINE"));
}

#[test]
fn nothing_is_asked_offline() {
    let server = Server::start(MODEL);
    let mut client = client(&server);
    client.hub.offline = true;
    for error in [client.model().unwrap_err(), client.vgg16().unwrap_err()] {
        assert!(matches!(error, HubError::Offline { .. }), "{error}");
    }
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn shards_come_with_their_index() {
    let mut model = MODEL.to_vec();
    let unet = "unet/diffusion_pytorch_model";
    model.retain(|(name, _)| !name.starts_with(unet));
    let index = r#"{"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}"#;
    let name = format!("{unet}.safetensors.index.json");
    model.extend([
        (name.as_str(), index),
        ("unet/part-1.safetensors", "one"),
        ("unet/part-2.safetensors", "two"),
    ]);
    let server = Server::start(model.clone());
    let client = client(&server);
    let dir = client.model().unwrap();
    assert_eq!(read(&dir.join("unet/part-1.safetensors")), "one");
    assert_eq!(read(&dir.join("unet/part-2.safetensors")), "two");

    let evil = r#"{"weight_map": {"a": "../../../part-1.safetensors"}}"#;
    model.retain(|(other, _)| *other != name);
    model.push((name.as_str(), evil));
    let server = Server::start(model);
    let error = self::client(&server).model().unwrap_err();
    assert!(
        matches!(&error, HubError::Malformed { file, .. } if *file == name),
        "{error}"
    );
}

#[test]
fn pixel_models_have_everything_at_the_top() {
    let server = Server::start([
        (
            "model_index.json",
            r#"{"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}"#,
        ),
        ("config.json", "{}"),
        ("diffusion_pytorch_model.bin", "weights"),
        ("scheduler_config.json", "{}"),
    ]);
    let client = client(&server);
    let dir = client.model().unwrap();
    assert_eq!(read(&dir.join("diffusion_pytorch_model.bin")), "weights");
    assert!(dir.join("scheduler_config.json").is_file());
}

#[test]
fn a_partial_file_is_continued() {
    let contents = noise(300_000);
    let server = Server::start([("model.safetensors", &contents)]);
    let client = client(&server);
    let partial = client.partial(&contents);
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &contents[..123_456]).unwrap();
    let path = client.file("model.safetensors").unwrap();
    assert_eq!(fs::read(path).unwrap(), contents);
    assert_eq!(server.ranges(), ["bytes=0-0", "bytes=123456-"]);
    assert!(!partial.exists());
}

#[test]
fn a_server_without_ranges_starts_again() {
    let contents = noise(300_000);
    let mut server = Server::start([("model.safetensors", &contents)]);
    server.set(|behaviour| behaviour.ranges = false);
    let client = client(&server);
    let partial = client.partial(&contents);
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, &contents[..123_456]).unwrap();
    let path = client.file("model.safetensors").unwrap();
    assert_eq!(fs::read(path).unwrap(), contents);
}

#[test]
fn a_truncated_body_never_becomes_a_file() {
    let contents = noise(100_000);
    let mut server = Server::start([("model.safetensors", &contents)]);
    server.set(|behaviour| behaviour.cut = Some(3_000));
    let client = client(&server);
    let error = client.file("model.safetensors").unwrap_err();
    assert!(
        matches!(
            error,
            HubError::Truncated {
                received: 15_000,
                expected: 100_000,
                ..
            }
        ),
        "{error}"
    );
    assert!(!client.blob(&contents).exists() && !client.repository().join("snapshots").exists());
    assert_eq!(
        fs::read(client.partial(&contents)).unwrap(),
        contents[..15_000]
    );

    // A connection that breaks now and then is no failure.
    server.set(|behaviour| behaviour.cut = Some(30_000));
    let path = client.file("model.safetensors").unwrap();
    assert_eq!(fs::read(path).unwrap(), contents);
}

#[test]
fn a_damaged_file_is_removed() {
    let contents = noise(10_000);
    let server = Server::start([("model.safetensors", &contents)]);
    let client = client(&server);
    let partial = client.partial(&contents);
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    fs::write(&partial, [0; 5_000]).unwrap();
    let error = client.file("model.safetensors").unwrap_err();
    assert!(
        matches!(&error, HubError::Damaged { expected, .. } if *expected == sha256(&contents)),
        "{error}"
    );
    assert!(!partial.exists() && !client.blob(&contents).exists());
    assert!(client.file("model.safetensors").is_ok());
}

#[test]
fn what_is_missing_is_named() {
    let server = Server::start([(
        "model_index.json",
        r#"{"unet": ["diffusers", "UNet2DModel"]}"#,
    )]);
    let client = client(&server);
    let error = |spec: &str| client.hub.model_dir(spec, &mut |_| {}).unwrap_err();
    let no_repository = error("owner/other");
    assert!(
        matches!(&no_repository, HubError::NoRepository { repository } if repository == "owner/other"),
        "{no_repository}"
    );
    let no_revision = error("owner/name@v9");
    assert!(
        matches!(&no_revision, HubError::NoRevision { revision, .. } if revision == "v9"),
        "{no_revision}"
    );
    let no_file = error(ID);
    assert!(
        matches!(&no_file, HubError::NoFile { file, .. } if file == "config.json"),
        "{no_file}"
    );
    let no_weights = Server::start([
        (
            "model_index.json",
            r#"{"unet": ["diffusers", "UNet2DModel"]}"#,
        ),
        ("unet/config.json", "{}"),
    ]);
    let error = self::client(&no_weights).model().unwrap_err().to_string();
    assert!(
        error.contains("unet/diffusion_pytorch_model.safetensors or .bin"),
        "{error}"
    );
    assert_eq!(client.hub.model_dir("folder", &mut |_| {}).unwrap(), None);
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    let mut server = Server::start(MODEL);
    server.set(|behaviour| behaviour.token = Some("secret".into()));
    let mut client = client(&server);
    let error = client.model().unwrap_err();
    assert!(
        matches!(
            error,
            HubError::Refused {
                status: 401,
                with_token: false,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.help().unwrap().contains("set HF_TOKEN"));
    client.hub.token = Some("wrong".into());
    let error = client.model().unwrap_err();
    assert!(
        matches!(
            error,
            HubError::Refused {
                status: 403,
                with_token: true,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.help().unwrap().contains("HF_TOKEN"));
    client.hub.token = Some("secret".into());
    client.model().unwrap();
}

#[test]
fn a_hub_that_is_none_is_named() {
    let mut server = Server::start(MODEL);
    server.set(|behaviour| behaviour.commit = false);
    let error = client(&server).model().unwrap_err();
    assert!(
        matches!(
            error,
            HubError::Header {
                header: "x-repo-commit",
                ..
            }
        ),
        "{error}"
    );
    server.set(|behaviour| behaviour.failing = true);
    let error = client(&server).model().unwrap_err();
    assert!(
        matches!(error, HubError::Status { status: 503, .. }),
        "{error}"
    );
    let unreachable = client(&server);
    drop(server);
    let error = unreachable.model().unwrap_err();
    assert!(matches!(error, HubError::Connection { .. }), "{error}");
}

/// A file like VGG16's: large matrices, and convolutions after them.
fn vgg16() -> Vec<u8> {
    let (classifier, features) = (noise(400_000), noise(40_000));
    let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
    let tensors = [
        ("classifier.0.weight", view(&[1000, 100], &classifier)),
        ("features.0.weight", view(&[100, 50], &features[..20_000])),
        (
            "features.2.weight",
            view(&[50, 10, 5], &features[20_000..30_000]),
        ),
        ("head.fc.weight", view(&[1000, 100], &classifier)),
        (
            "pre_logits.fc1.weight",
            view(&[50, 50], &features[30_000..]),
        ),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn of_vgg16_only_the_convolutions_are_downloaded() {
    let contents = vgg16();
    let server = Server::start([("model.safetensors", &contents)]);
    let client = client(&server);
    let path = client.vgg16().unwrap();
    assert!(path.starts_with(client.folder.path().join("ldm")));
    let file = fs::read(&path).unwrap();
    let (found, expected) = (
        SafeTensors::deserialize(&file).unwrap(),
        SafeTensors::deserialize(&contents).unwrap(),
    );
    let mut names = found.names();
    names.sort_unstable();
    assert_eq!(names, ["features.0.weight", "features.2.weight"]);
    for name in names {
        assert_eq!(found.tensor(name).unwrap(), expected.tensor(name).unwrap());
    }
    // Headers, and the two neighbours at once.
    assert_eq!(server.ranges().len(), 3, "{:?}", server.ranges());
    assert!(server.sent() < 100_000 + 10_000, "{}", server.sent());

    drop(server);
    assert_eq!(client.vgg16().unwrap(), path);
}

#[test]
fn all_of_vgg16_is_downloaded_where_it_must_be() {
    let contents = vgg16();
    let mut server = Server::start([("model.safetensors", &contents)]);
    server.set(|behaviour| behaviour.ranges = false);
    let client = client(&server);
    let path = client.vgg16().unwrap();
    assert!(path.starts_with(client.repository()));
    assert_eq!(fs::read(&path).unwrap(), contents);
    drop(server);
    assert_eq!(client.vgg16().unwrap(), path);
}

#[test]
fn a_broken_vgg16_leaves_nothing() {
    let contents = vgg16();
    let mut server = Server::start([("model.safetensors", &contents)]);
    server.set(|behaviour| behaviour.cut = Some(20_000));
    let broken = client(&server);
    let error = broken.vgg16().unwrap_err();
    assert!(matches!(error, HubError::Truncated { .. }), "{error}");
    assert!(!broken.folder.path().join("ldm").exists());

    for garbage in [&b"short"[..], &[255; 100], b"\x02\0\0\0\0\0\0\0{]"] {
        let server = Server::start([("model.safetensors", garbage)]);
        let error = client(&server).vgg16().unwrap_err();
        assert!(matches!(error, HubError::Malformed { .. }), "{error}");
    }
}
