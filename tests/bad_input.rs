//! Wrong input of every kind, through the binary: one error that names the culprit, the way out where there is one, the right exit
//! status, and nothing half-written.

mod support;

use std::{fs, path::Path, process::Command};

use support::{
    CONFIG, Workspace,
    refusals::{assert_nothing_partial, case, check, error_text, refused},
    stderr, vq_config,
};

#[test]
fn wrong_usage() {
    let workspace = Workspace::new();
    let table = [
        (
            "train all tiny.toml --data data --steps -3",
            "'-3' for '--steps",
        ),
        ("train all tiny.toml --steps 0", "'0' for '--steps"),
        ("train all tiny.toml --steps many", "'many' for '--steps"),
        ("train all tiny.toml --resmue", "'--resmue'"),
        ("train all tiny.toml --set steps", "'steps' for '--set"),
        ("train all tiny.toml --set =3", "'=3' for '--set"),
        ("train vae", "<CONFIG>"),
        ("train both tiny.toml", "'both'"),
        ("paint", "'paint'"),
        ("sample cat --model m --prompts list.txt", "--prompts"),
        ("sample cat --model m --class 3", "--class"),
        ("sample cat --model m --seeds 1,x", "'x' for '--seeds"),
        ("sample cat --model m --seeds 1-5", "1,5,9"),
        ("sample cat --model m --seeds 1 --seed 2", "--seed"),
        ("sample cat --model m --seeds 1 --count 2", "--count"),
        ("sample cat --model m --grid 4", "'4' for '--grid"),
        ("sample cat --model m --grid 0x4", "'0x4' for '--grid"),
        ("sample cat --model m --each", "--grid"),
        ("sample cat --model m --steps 0", "'0' for '--steps"),
        ("sample cat --model m --count -1", "'-1' for '--count"),
        ("sample cat --model m --seed -1", "'-1' for '--seed"),
        (
            "sample cat --model m --guidance strong",
            "'strong' for '--guidance",
        ),
        (
            "sample cat --model m --sampler magic",
            "'magic' for '--sampler",
        ),
        ("sample cat --model m --width 32", "--height"),
        (
            "sample cat --model m --width 0 --height 8",
            "'0' for '--width",
        ),
        (
            "sample cat --model m --width 999999 --height 8",
            "'999999' for '--width",
        ),
        (
            "sample cat --model m --device abacus",
            "'abacus' for '--device",
        ),
        ("sample cat --model m --device rocm", "--features rocm"),
        (
            "sample cat --model m --device flex:1",
            "'flex:1' for '--device",
        ),
        ("reconstruct --model m --out pictures", "IMAGE"),
        ("data twemoji", "--out"),
        ("quickstart --steps -1", "'-1' for '--steps"),
    ];
    for (arguments, culprit) in table {
        refused(&workspace, arguments, 2, culprit);
    }
}

#[test]
fn wrong_configurations() {
    let workspace = Workspace::new();
    let misspelt = |right: &str, wrong: &str| CONFIG.replacen(right, wrong, 1);
    workspace.write("broken.toml", "seed = = 5");
    workspace.write("binary.toml", [0xff, 0xfe, 0x00]);
    workspace.write("empty.toml", "");
    workspace.write("optional.toml", misspelt("flip", "flpi"));
    workspace.write("required.toml", misspelt("batch_size", "bacth_size"));
    workspace.write("nested.toml", misspelt("warmup_steps", "warm_up_steps"));
    workspace.write("loss.toml", misspelt("disc_start", "disk_start"));
    workspace.write(
        "section.toml",
        misspelt("[stage2.training]", "[stage2.trainig]"),
    );
    workspace.write("autoencoder.toml", misspelt("[stage1.vae]", "[stage1.vea]"));
    workspace.write(
        "codebook.toml",
        vq_config().replace("[stage1.vq]", "[stage1.qv]"),
    );
    workspace.write(
        "code.toml",
        vq_config().replace("num_vq_embeddings", "num_vq_embedings"),
    );
    workspace.write("both.toml", format!("{CONFIG}\n[stage1.vq]\n"));
    workspace.write("vq.toml", vq_config());
    let without = CONFIG.split("[stage1.vae]").next().unwrap();
    workspace.write("neither.toml", without);
    workspace.write("strange.toml", format!("shoe_size = 43\n{CONFIG}"));
    workspace.write("missing-key.toml", misspelt("batch_size = 2", ""));
    let docs = "docs/configuration.md";
    check(
        &workspace,
        &[
            case("train all none.toml", "none.toml", "configs/"),
            case("train all broken.toml", "broken.toml is not valid TOML", ""),
            case("train all binary.toml", "binary.toml", ""),
            case("train all empty.toml", "`stage1`", docs),
            case("train all optional.toml", "`data.flpi`", "`data.flip`"),
            case(
                "train all required.toml",
                "`stage1.training.bacth_size`",
                "`stage1.training.batch_size`",
            ),
            case(
                "train all nested.toml",
                "`stage1.training.lr.warm_up_steps`",
                "`stage1.training.lr.warmup_steps`",
            ),
            case(
                "train all loss.toml",
                "`stage1.loss.disk_start`",
                "`stage1.loss.disc_start`",
            ),
            case(
                "train all section.toml",
                "`stage2.trainig`",
                "`stage2.training`",
            ),
            case("train all autoencoder.toml", "`stage1.vea`", "`stage1.vae`"),
            case("train all codebook.toml", "`stage1.qv`", "`stage1.vq`"),
            case(
                "train all code.toml",
                "`stage1.vq.num_vq_embedings`",
                "`stage1.vq.num_vq_embeddings`",
            ),
            case(
                "train all both.toml",
                "`stage1.vq` is given beside `stage1.vae`",
                docs,
            ),
            case("train all neither.toml", "`stage1.vae` is missing", docs),
            case(
                "train all vq.toml --set stage1.vq.num_vq_embeddings=0",
                "`stage1.vq` is wrong: `num_vq_embeddings` is 0",
                docs,
            ),
            case(
                "train all vq.toml --set stage1.vq.out_channels=1",
                "`stage1.vq` maps 3 channels to 1",
                docs,
            ),
            case(
                "train all vq.toml --set stage1.vq.vq_embed_dim=3",
                "latents have 3",
                docs,
            ),
            case(
                "train all vq.toml --set stage1.loss.codebook_weight=-1",
                "`codebook_weight`",
                docs,
            ),
            case("train all strange.toml", "`shoe_size`", docs),
            case(
                "train all missing-key.toml",
                "`stage1.training.batch_size` is missing",
                docs,
            ),
            case("info optional.toml", "`data.flpi`", "`data.flip`"),
            case(
                "train all tiny.toml --set data.fil=pad",
                "`data.fil`",
                "`data.fit`",
            ),
            case(
                "train all tiny.toml --set seed.deep=1",
                "`seed.deep=1`",
                "--set",
            ),
            case(
                "train all tiny.toml --set data.resolution=big",
                "`data.resolution`",
                docs,
            ),
            case(
                "train all tiny.toml --set data.fit=squeeze",
                "`data.fit`",
                docs,
            ),
            case(
                "train all tiny.toml --set data.resolution=-32",
                "`data.resolution`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage1.training.batch_size=0",
                "`batch_size` = 0",
                docs,
            ),
            case(
                "train all tiny.toml --set stage1.training.lr.rate=-1e-3",
                "`lr.rate` = -0.001",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.training.lr.rate=nan",
                "`lr.rate` = NaN",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.training.ema_decay=1.5",
                "`ema_decay` = 1.5",
                docs,
            ),
            case(
                "train all tiny.toml --set stage1.loss.kl_weight=-1",
                "`kl_weight`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage1.vae.in_channels=1",
                "`stage1.vae` maps 1",
                docs,
            ),
            case(
                "train all tiny.toml --set stage1.vae.norm_num_groups=5",
                "`stage1.vae`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.unet.in_channels=4",
                "`stage2.unet` maps 4",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.unet.attention_head_dim=3",
                "`attention_head_dim`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.unet.num_class_embeds=9",
                "`num_class_embeds`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.noise.beta_start=-1",
                "`stage2.noise`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.text.dropout=2",
                "`dropout` = 2",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.text.bert.d_model=12",
                "width 12",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.text.bert.vocab_size=99",
                "`vocab_size` = 99",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.text.bert.encoder_attention_heads=0",
                "`encoder_attention_heads`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.preview.steps=1001",
                "`stage2.preview`",
                docs,
            ),
            case(
                "train all tiny.toml --set stage2.preview.guidance=inf",
                "`guidance` = inf",
                docs,
            ),
            // Sizes that some network can't work on.
            case(
                "train all tiny.toml --set data.resolution=30",
                "`data.resolution` is 30",
                docs,
            ),
            case(
                "train all tiny.toml --set data.resolution=8",
                "needs at least 12",
                docs,
            ),
            case(
                "train all tiny.toml --set data.resolution=12 --set stage1.loss.perceptual_weight=1",
                "needs at least 16",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32,32],[48,30]]",
                "`data.buckets` has 48x30",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32,32],[48,8]]",
                "`data.buckets` has 48x8, but a discriminator",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32,32],[48,0]]",
                "`data.buckets` has 48x0",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32,48],[64,96]]",
                "of one aspect ratio",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32]]",
                "`data.buckets",
                docs,
            ),
            case(
                "train all tiny.toml --set data.buckets=[[32,-32]]",
                "`data.buckets",
                docs,
            ),
        ],
    );
}

#[test]
fn wrong_data() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("empty")).unwrap();
    workspace.write("texts/notes.txt", "no picture");
    let png = fs::read(workspace.path("data/0.png")).unwrap();
    for number in 0..3 {
        workspace.write(&format!("damaged/{number}.png"), &png[..png.len() / 2]);
        workspace.write(&format!("plain/{number}.png"), &png);
    }
    workspace.write("missing/a.png", &png);
    workspace.write(
        "missing/metadata.jsonl",
        r#"{"file_name": "b.png", "text": "a bee"}"#,
    );
    workspace.write("torn/a.png", &png);
    workspace.write(
        "torn/metadata.jsonl",
        "{\"file_name\": \"a.png\", \"text\": \"an ant\"}\n{\"file_name\": ",
    );
    workspace.write(
        "stage1.toml",
        CONFIG.split("[stage2.training]").next().unwrap(),
    );
    check(
        &workspace,
        &[
            case("train all tiny.toml", "no data folder", "--data"),
            case(
                "train all tiny.toml --data nowhere --out run",
                "nowhere",
                "ldm data twemoji",
            ),
            case(
                "train all tiny.toml --data data/0.png --out run",
                "data/0.png is a file",
                "folder",
            ),
            case(
                "train all tiny.toml --data empty --out run",
                "no images in empty",
                "--data",
            ),
            case(
                "train vae tiny.toml --data texts --out run",
                "no images in texts",
                "--data",
            ),
            case(
                "train vae tiny.toml --data damaged --out run",
                "none of the",
                "replace or remove",
            ),
            case(
                "train all tiny.toml --data missing --out run",
                "missing/metadata.jsonl, line 1",
                "file_name",
            ),
            case(
                "train all tiny.toml --data torn --out run",
                "torn/metadata.jsonl, line 2",
                "file_name",
            ),
            // Found before the first stage has been trained in vain.
            case(
                "train all tiny.toml --data plain --out run",
                "no image in plain has a caption",
                "name.txt",
            ),
            case(
                "train all stage1.toml --data data --out run",
                "`stage2` is missing",
                "",
            ),
            case(
                "train diffusion tiny.toml --data data --out run",
                "run has no trained autoencoder",
                "train vae",
            ),
            case(
                "train diffusion tiny.toml --data data --out run --set stage2.first_stage=empty",
                "empty is no model",
                "model_index.json",
            ),
            // The perceptual network.
            case(
                "train vae tiny.toml --data data --out run --set stage1.loss.perceptual_weight=1",
                "`stage1.vgg`",
                "perceptual_weight=0",
            ),
            case(
                "train vae tiny.toml --data data --out run --set stage1.loss.perceptual_weight=1 --set stage1.vgg=no.safetensors",
                "no.safetensors",
                "check the path",
            ),
            case(
                "train vae tiny.toml --data data --out run --set stage1.loss.perceptual_weight=1 --set stage1.vgg=tiny.toml",
                "tiny.toml: not a safetensors file",
                "again",
            ),
            case(
                "train vae tiny.toml --data data --out run --set stage1.loss.perceptual_weight=1 --set stage1.vgg=no/body",
                "model.safetensors of no/body is not in the cache",
                "give their path",
            ),
            case(
                "quickstart --out run --steps 1 --vgg no.safetensors",
                "no.safetensors",
                "check the path",
            ),
            case(
                "data twemoji --out data",
                "data already exists",
                "another folder",
            ),
        ],
    );
}

#[test]
fn under_strict_one_damaged_image_ends_the_run() {
    for (name, keep) in [("text.png", None), ("truncated.png", Some(50))] {
        let workspace = Workspace::new();
        let content = match keep {
            Some(length) => fs::read(workspace.path("data/0.png")).unwrap()[..length].to_vec(),
            None => b"no picture at all".to_vec(),
        };
        workspace.write(&format!("data/{name}"), content);
        let command = "train vae tiny.toml --data data --out run --set data.validation=0";
        let output = workspace.output(&format!("{command} --set data.strict=true"));
        let text = error_text(&output, 1);
        assert!(
            text.contains("damaged files are not allowed") && text.contains(name),
            "{text}"
        );
        assert!(text.contains("help: replace or remove the file"), "{text}");
        assert_nothing_partial(&workspace, "run");

        // Nothing has been trained that would be in the way of a second try, which passes the file over.
        let output = workspace.output(command);
        let text = stderr(&output);
        support::succeeded(output);
        assert!(
            text.contains(name) && text.contains("skipped, 1 so far"),
            "{text}"
        );
    }
}

#[test]
fn a_run_whose_checkpoints_are_all_damaged_is_not_overwritten() {
    let workspace = Workspace::new();
    workspace.run("train vae tiny.toml --data data --out run --steps 2");
    fs::write(
        workspace.path("run/stage1/checkpoints/step-00000002/vae.safetensors"),
        "",
    )
    .unwrap();
    check(
        &workspace,
        &[case(
            "train vae tiny.toml --data data --out run --steps 2 --resume",
            "step-00000002 is damaged",
            "remove",
        )],
    );
}

#[test]
fn outputs_that_cannot_be_written() {
    let workspace = Workspace::new();
    workspace.write("file", "in the way");
    check(
        &workspace,
        &[
            case(
                "train vae tiny.toml --data data --out file",
                "file",
                "--out",
            ),
            case(
                "train vae tiny.toml --data data --out file/run",
                "file/run",
                "--out",
            ),
            case(
                "data twemoji --count 2 --out file/data",
                "file/data",
                "space",
            ),
            case("quickstart --steps 1 --out file/run", "file/run", "space"),
        ],
    );
    if Path::new("/proc").is_dir() {
        check(
            &workspace,
            &[case(
                "train vae tiny.toml --data data --out /proc/run",
                "/proc/run",
                "--out",
            )],
        );
    }
}

/// A file size limit fails as a full disk does, in the middle of a write, and needs neither privileges nor a disk.
#[cfg(unix)]
#[test]
fn writes_that_fail_half_way_leave_nothing() {
    let workspace = Workspace::new();
    let limited = |blocks: u32, arguments: &str| {
        let program = workspace.command(arguments);
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(program.get_program())
            .args(program.get_args());
        command.current_dir(workspace.path("")).output().unwrap()
    };
    let text = error_text(&limited(1, "data twemoji --count 3 --out emoji"), 1);
    assert!(text.contains("emoji") && text.contains("space"), "{text}");
    assert!(!workspace.path("emoji").exists());

    // Room for pictures, but not for a checkpoint.
    let text = error_text(
        &limited(
            100,
            "train vae tiny.toml --data data --out run --steps 4 --set stage1.training.write_patience=1",
        ),
        1,
    );
    assert!(text.contains("no checkpoint at step 2"), "{text}");
    assert!(
        text.contains("step-00000004") && text.contains("help: free some space"),
        "{text}"
    );
    assert_nothing_partial(&workspace, "run");
    assert!(
        !workspace
            .path("run/stage1/checkpoints/step-00000004")
            .exists()
    );
    assert!(!workspace.path("run/model").exists());

    workspace.run("train all tiny.toml --data data --out run --steps 4");
    let text = error_text(
        &limited(1, "sample cat --model run --steps 2 --width 64 --height 64"),
        1,
    );
    assert!(
        text.contains("sample.png") && text.contains("help: free some space"),
        "{text}"
    );
    assert!(!workspace.path("sample.png").exists());
}

/// A small file system in memory, where the machine allows one.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full() {
    let workspace = Workspace::new();
    fs::create_dir(workspace.path("disk")).unwrap();
    let in_namespace = |script: &str, arguments: &str| {
        let program = workspace.command(arguments);
        let script = format!("mount -t tmpfs -o size=600k tmpfs disk && {script}");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
        command.arg(program.get_program()).args(program.get_args());
        command.current_dir(workspace.path("")).output()
    };
    if !in_namespace("true", "").is_ok_and(|output| output.status.success()) {
        println!("no file system can be mounted here: nothing tested");
        return;
    }
    let script = "\"$0\" \"$@\"; status=$?; find disk -name '*.partial*' | sed 's/^/left behind: /' >&2; exit $status";
    let arguments =
        "train vae tiny.toml --data data --out disk/run --set stage1.training.write_patience=1";
    let output = in_namespace(script, arguments).unwrap();
    let text = error_text(&output, 1);
    assert!(
        text.contains("disk/run") && text.contains("No space left"),
        "{text}"
    );
    assert!(text.contains("help: free some space"), "{text}");
    assert!(!text.contains("left behind"), "{text}");
}

/// Standard output is a place to write to like any other.
#[cfg(target_os = "linux")]
#[test]
fn a_full_or_closed_standard_output_is_no_panic() {
    let workspace = Workspace::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = workspace
        .command("devices")
        .stdout(full)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let text = error_text(&output.wait_with_output().unwrap(), 1);
    assert!(
        text.contains("standard output") && text.contains("No space left"),
        "{text}"
    );

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = workspace
        .command("devices")
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = output.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

#[cfg(not(feature = "mpi"))]
#[test]
fn one_of_several_processes_without_mpi_touches_nothing() {
    let workspace = Workspace::new();
    for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"] {
        let mut command = workspace.command("train all tiny.toml --data data --out run");
        let output = command.env(name, "2").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        let text = stderr(&output);
        assert!(text.contains("built without --features mpi"), "{text}");
        assert!(text.contains("help: build it with MPI"), "{text}");
        assert!(!workspace.path("run").exists());
    }
}
