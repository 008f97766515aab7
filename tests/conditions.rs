//! Models of classes and semantic masks, trained and drawn from on tiny data, by numbers, names and colours; pictures to start from.

mod support;

use std::{fs, path::Path};

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::{Value, json};
use support::{
    CONFIG, Workspace,
    pictures::{assert_alike, picture, record, set_fact, with_model},
    refusals::refused_naming,
    stderr, succeeded, write_pictures,
};

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

fn write_indexed(path: &Path, [width, height]: [u32; 2], colors: &[[u8; 3]], indices: &[u8]) {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_palette(colors.as_flattened().to_vec());
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(indices).unwrap();
    writer.finish().unwrap();
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
        // A sixth colour without a label, as other programs write them.
        let colors = [0, 30, 60, 90, 120, 150].map(|level| [level, level + 10, level + 20]);
        write_indexed(&path, [40, height], &colors, &pixels);
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
fn classes_have_numbers_and_names() {
    let workspace = with_model("class-vq-f4");
    let options = "--model m --steps 2";
    refused_naming(
        &workspace,
        &format!("sample {options} --class goldfish"),
        1,
        &["\"goldfish\"", "number"],
    );
    workspace.run(&format!("sample {options} --class 1 --out nameless.png"));
    let found = record(&workspace, "nameless.png");
    assert_eq!(
        [&found["class"], &found["class_name"]],
        [&json!(1), &Value::Null]
    );

    set_fact(
        &workspace,
        "classes",
        json!([
            "tench, Tinca tinca",
            "goldfish",
            "great white shark",
            "crane",
            "crane"
        ]),
    );
    assert!(workspace.run("info m").contains("goldfish"));
    let classes = [
        "--class",
        "Goldfish",
        "--class",
        "2",
        "--class",
        "tinca tinca",
    ];
    let output = workspace
        .command(&format!("sample {options} --out named.png"))
        .args(classes)
        .output()
        .unwrap();
    succeeded(output);
    for (index, class) in [1, 2, 0].into_iter().enumerate() {
        let name = format!("named-{index}.png");
        let found = record(&workspace, &name);
        assert_eq!(found["class"], class);
        workspace.run(&format!(
            "sample {options} --class {class} --out numbered.png"
        ));
        let [named, numbered] = [&name, "numbered.png"].map(|name| picture(&workspace, name));
        assert_alike(&named, &numbered, &name);
    }
    assert_eq!(
        record(&workspace, "named-1.png")["class_name"],
        "great white shark"
    );
    assert_ne!(
        picture(&workspace, "named-0.png"),
        picture(&workspace, "named-1.png")
    );

    workspace.run(&format!(
        "sample {options} --class goldfish --class tench --interpolate 3 --out way.png"
    ));
    assert_alike(
        &picture(&workspace, "way-2.png"),
        &picture(&workspace, "named-2.png"),
        "the end of the way",
    );
    for (class, expected) in [
        ("goldfsh", "did you mean \"goldfish\""),
        ("zebra", "tench, Tinca tinca, goldfish"),
        ("crane", "[3, 4]"),
        ("11", "0 to 10"),
    ] {
        let arguments = format!("sample {options} --class {class} --out no.png");
        refused_naming(&workspace, &arguments, 1, &[expected]);
    }
    refused_naming(&workspace, "sample --model m --class -1", 2, &["from 0"]);
}

#[test]
fn masks_are_labels_or_colours_of_a_palette() {
    let workspace = with_model("semantic-vq-f4");
    let colors = [[200, 40, 40], [40, 200, 40], [40, 40, 200]];
    let label = |x: u32, y: u32| ((x / 11 + y / 16) % 3) as u8;
    let indices: Vec<u8> = (0..32 * 32).map(|at| label(at % 32, at / 32)).collect();
    write_indexed(&workspace.path("indices.png"), [32, 32], &colors, &indices);
    let mut painted = RgbImage::from_fn(32, 32, |x, y| image::Rgb(colors[label(x, y) as usize]));
    painted.save(workspace.path("painted.png")).unwrap();
    // The same picture as an editor may save it, with its colours in another order.
    let [first, second, third] = colors;
    write_indexed(
        &workspace.path("reordered.png"),
        [32, 32],
        &[third, first, second],
        &indices
            .iter()
            .map(|index| (index + 1) % 3)
            .collect::<Vec<_>>(),
    );
    painted.put_pixel(7, 3, image::Rgb([199, 40, 41]));
    painted.save(workspace.path("stained.png")).unwrap();
    workspace.write(
        "palette.txt",
        "# red, green, blue\n200 40 40 hair\n40 200 40 skin\n40 40 200 clothes\n",
    );

    let draw = |arguments: &str| {
        workspace.run(&format!(
            "sample --model m --steps 2 {arguments} --out out.png"
        ));
        picture(&workspace, "out.png")
    };
    let expected = draw("--semantic indices.png");
    assert_eq!(
        draw("--semantic painted.png --palette palette.txt"),
        expected
    );
    let found = record(&workspace, "out.png");
    assert_eq!(
        [&found["semantic"], &found["palette"]],
        [&json!("painted.png"), &json!("palette.txt")]
    );
    assert_eq!(
        draw("--semantic painted.png --palette indices.png"),
        expected
    );
    assert_eq!(
        draw("--semantic reordered.png --palette palette.txt"),
        expected
    );
    refused_naming(
        &workspace,
        "sample --model m --semantic painted.png",
        1,
        &["painted.png", "--palette"],
    );
    set_fact(&workspace, "palette", json!(colors));
    assert_eq!(draw("--semantic painted.png"), expected);

    workspace.run("sample --model m --steps 2 --semantic indices.png --semantic painted.png --seeds 1,2 --out two.png");
    assert_alike(
        &picture(&workspace, "two-1.png"),
        &picture(&workspace, "two-3.png"),
        "one mask in two files",
    );
    RgbImage::from_pixel(32, 16, Rgb(colors[0]))
        .save(workspace.path("half.png"))
        .unwrap();
    workspace.write("short.txt", "200 40 40\n40 200 40\n");
    workspace.write("wrong.txt", "200 40 40\nred\n");
    for (arguments, expected) in [
        (
            "--semantic stained.png",
            &["stained.png", "(7, 3)", "(199, 40, 41)", "label 0"][..],
        ),
        (
            "--semantic painted.png --palette short.txt",
            &["painted.png", "(22, 0)", "(40, 40, 200)"],
        ),
        (
            "--semantic painted.png --palette wrong.txt",
            &["wrong.txt", "line 2"],
        ),
        (
            "--semantic painted.png --palette painted.png",
            &["no palette"],
        ),
        ("--semantic painted.png --palette none.txt", &["none.txt"]),
        (
            "--semantic painted.png --semantic half.png",
            &["32 x 32 and 32 x 16"],
        ),
        (
            "--semantic painted.png --semantic indices.png --seeds 1,2 --interpolate 3",
            &["two prompts or two classes"],
        ),
    ] {
        refused_naming(
            &workspace,
            &format!("sample --model m {arguments}"),
            1,
            expected,
        );
    }
    refused_naming(
        &workspace,
        "sample --model m --palette palette.txt",
        2,
        &["--semantic"],
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
