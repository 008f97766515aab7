//! Models of classes and semantic masks, trained and drawn from on tiny data; pictures to start from.

mod support;

use std::fs;

use image::{GrayImage, Luma, Rgb, RgbImage};
use support::{CONFIG, Workspace, stderr, succeeded, write_pictures};

/// [`CONFIG`] with another condition in place of its text.
fn config_with(condition: &str) -> String {
    let (before, after) = CONFIG.split_once("[stage2.text]").unwrap();
    let preview = &after[after.find("[stage2.preview]").unwrap()..];
    let preview = preview
        .lines()
        .filter(|line| !line.starts_with("prompts"))
        .collect::<Vec<_>>()
        .join("\n");
    format!("{before}{condition}\n{preview}\n").replace("flip = 0.5", "flip = 0.0")
}

fn picture(workspace: &Workspace, name: &str) -> RgbImage {
    image::open(workspace.path(name)).unwrap().into_rgb8()
}

#[test]
fn classes_are_learned_from_folders_and_drawn_by_number() {
    let workspace = Workspace::empty();
    for class in ["apples", "pears", "plums"] {
        write_pictures(&workspace.path(&format!("data/{class}")), 4);
        fs::remove_file(workspace.path(&format!("data/{class}/metadata.jsonl"))).unwrap();
    }
    workspace.write(
        "class.toml",
        config_with("[stage2.class]\nn_classes = 4\nembed_dim = 8\n"),
    );
    workspace.run("train all class.toml --data data --out run --steps 3");
    let info = workspace.run("info run");
    assert!(
        info.contains("4 classes") && info.contains("apples, pears, plums"),
        "{info}"
    );
    let mut pictures = Vec::new();
    for (class, guidance) in [(0, 2), (1, 2), (0, 1)] {
        workspace.run(&format!(
            "sample --model run --class {class} --guidance {guidance} --steps 3 --out sample.png"
        ));
        pictures.push(picture(&workspace, "sample.png"));
    }
    assert_ne!(pictures[0], pictures[1], "the class has no effect");
    workspace.run("sample --model run --class pears --guidance 2 --steps 3 --out named.png");
    assert_eq!(picture(&workspace, "named.png"), pictures[1]);
    assert_ne!(pictures[0], pictures[2], "guidance has no effect");

    // CompVis' code always has 32 groups, this model 4.
    let output = workspace.output("convert run class.ckpt");
    assert!(
        stderr(&output).contains("norm_num_groups"),
        "{}",
        stderr(&output)
    );
    assert!(!workspace.path("class.ckpt").exists() && !workspace.path("class.yaml").exists());
}

#[test]
fn scenes_are_learned_from_masks_and_drawn_by_one() {
    let workspace = Workspace::empty();
    write_pictures(&workspace.path("data"), 8);
    fs::create_dir_all(workspace.path("masks")).unwrap();
    let mask = |number: u32, top: u32, height: u32| {
        let label = |x: u32, y: u32| ((x / 10 + (top + y) / 9 + number) % 5) as u8;
        let pixels: Vec<u8> = (0..40 * height).map(|at| label(at % 40, at / 40)).collect();
        let path = workspace.path(&format!("masks/{number}.png"));
        let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), 40, height);
        encoder.set_color(png::ColorType::Indexed);
        // A sixth colour without a label, as other programs write them.
        encoder.set_palette((0..18).map(|level| 10 * level).collect::<Vec<u8>>());
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&pixels).unwrap();
        writer.finish().unwrap();
    };
    for number in 0..8 {
        mask(number, 0, 36);
    }
    let condition =
        "[stage2.semantic]\nmasks = \"masks\"\nn_stages = 2\nin_channels = 5\nout_channels = 3\n";
    let config = config_with(condition)
        .replace(
            "in_channels = 2\nout_channels = 2",
            "in_channels = 5\nout_channels = 2",
        )
        .replace("UNet2DConditionModel", "UNet2DModel")
        .replace("CrossAttnDownBlock2D", "DownBlock2D")
        .replace("CrossAttnUpBlock2D", "UpBlock2D")
        .replace("cross_attention_dim = 8\n", "");
    workspace.write("semantic.toml", &config);
    workspace.run("train all semantic.toml --data data --out run --steps 3");

    // Masks have the shape of their pictures.
    let buckets = "resolution = 32\nbuckets = [[32, 32], [48, 32]]";
    workspace.write("buckets.toml", config.replace("resolution = 32", buckets));
    for number in [1, 3, 4, 6] {
        let path = workspace.path(&format!("data/{number}.png"));
        let wide = image::open(&path).unwrap().crop_imm(0, 4, 40, 27);
        wide.save(path).unwrap();
        mask(number, 4, 27);
    }
    workspace.run("train all buckets.toml --data data --out buckets --steps 3");
    GrayImage::from_pixel(48, 32, Luma([3]))
        .save(workspace.path("wide-mask.png"))
        .unwrap();
    workspace.run("sample --model buckets --semantic wide-mask.png --steps 2 --out wide.png");
    assert_eq!(picture(&workspace, "wide.png").dimensions(), (48, 32));

    for (name, label) in [("a", 0), ("b", 4)] {
        GrayImage::from_pixel(32, 32, Luma([label]))
            .save(workspace.path(&format!("{name}.png")))
            .unwrap();
        workspace.run(&format!(
            "sample --model run --semantic {name}.png --steps 3 --out drawn-{name}.png"
        ));
    }
    assert_ne!(
        picture(&workspace, "drawn-a.png"),
        picture(&workspace, "drawn-b.png"),
        "the mask has no effect"
    );

    // The model knows the colours that stood for the labels in its masks.
    assert!(workspace.run("info run").contains("colours of 5 labels"));
    RgbImage::from_pixel(32, 32, Rgb([120, 130, 140]))
        .save(workspace.path("colour.png"))
        .unwrap();
    workspace.run("sample --model run --semantic colour.png --steps 3 --out drawn-colour.png");
    assert_eq!(
        picture(&workspace, "drawn-colour.png"),
        picture(&workspace, "drawn-b.png")
    );
}

#[test]
fn pictures_are_led_away_from_and_regions_drawn_anew() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out run --steps 3");
    let start = RgbImage::from_fn(32, 32, |x, y| Rgb([8 * x as u8, 8 * y as u8, 77]));
    start.save(workspace.path("start.png")).unwrap();
    let mask = GrayImage::from_fn(32, 32, |x, _| Luma([if x < 16 { 0 } else { 255 }]));
    mask.save(workspace.path("mask.png")).unwrap();

    let draw = |arguments: &str, out: &str| {
        workspace.run(&format!(
            "sample cat --model run --steps 10 {arguments} --out {out}.png"
        ));
        picture(&workspace, &format!("{out}.png"))
    };
    for sampler in ["ddim", "euler", "heun", "plms", "dpm++2m", "unipc"] {
        let near = draw(
            &format!("--sampler {sampler} --init-image start.png --strength 0.1"),
            "near",
        );
        let far = draw(
            &format!("--sampler {sampler} --init-image start.png --strength 0.9"),
            "far",
        );
        assert_ne!(near, far, "{sampler}: the strength has no effect");
        let filled = draw(
            &format!("--sampler {sampler} --init-image start.png --mask mask.png"),
            "filled",
        );
        for (x, y, pixel) in filled.enumerate_pixels() {
            if x < 16 {
                assert_eq!(
                    pixel,
                    start.get_pixel(x, y),
                    "{sampler}: a known pixel at {x}, {y}"
                );
            }
        }
        assert!(
            (16..32).any(|x| filled.get_pixel(x, 5) != start.get_pixel(x, 5)),
            "{sampler}: nothing was drawn"
        );
    }
}

#[test]
fn latents_are_kept_and_decode_to_the_same_picture() {
    let workspace = Workspace::new();
    workspace.run("train all tiny.toml --data data --out run --steps 3");
    workspace.run("sample cat --model run --steps 3 --count 3 --batch 2 --save-latents end.safetensors --out drawn.png");
    workspace.run("decode end.safetensors --model run --out decoded");
    for number in 0..3 {
        assert_eq!(
            picture(&workspace, &format!("drawn-{number}.png")),
            picture(&workspace, &format!("decoded/{number:04}.png"))
        );
    }
    // An image and its latents: what `encode` gives is what `reconstruct` decodes.
    succeeded(workspace.output("encode data/0.png data/1.png --model run --out z.safetensors"));
    let refused = workspace.output("decode z.safetensors --model run --out no");
    assert!(!refused.status.success(), "posteriors are no latents");
}
