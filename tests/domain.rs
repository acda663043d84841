//! The domain's types, the schema that describes them, the templates that print them, the layers.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{CASES, example, root};
use gen_backup_bundle::backup::BackupConfig;
use gen_backup_bundle::bundle::{SENTENCES, templates};
use gen_backup_bundle::environment::Environment;
use gen_backup_bundle::plan::BackupPlan;
use gen_backup_bundle::value::{HostName, HostPath, ImageReference, KeyPath, Secret, UserName};
use serde_json::Value;

/// Every module, from what all need to what nobody needs. Each uses earlier ones only.
const LAYERS: [&str; 23] = [
    "value",
    "shown",
    "problem",
    "json",
    "schedule",
    "database",
    "restic",
    "monitoring",
    "topology",
    "backup",
    "schema",
    "syntax",
    "difference",
    "error",
    "rules",
    "environment",
    "plan",
    "bundle",
    "output",
    "explain",
    "init",
    "lib",
    "main",
];

/// Every file of a module, `cli.rs` with `main.rs`.
fn sources(module: &str) -> String {
    let mut files = vec![root().join("src").join(module).with_extension("rs")];
    if module == "main" {
        files.push(root().join("src/cli.rs"));
    }
    let folder = fs::read_dir(root().join("src").join(module));
    files.extend(
        folder
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path()),
    );
    let texts = files
        .iter()
        .filter(|file| file.extension().is_some_and(|ext| ext == "rs"));
    texts
        .map(|file| fs::read_to_string(file).unwrap())
        .collect()
}

fn schema() -> Value {
    let path = root().join("schemas/environment.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn plan(case: &str) -> Value {
    let environment =
        Environment::read(&root().join("examples").join(case).join("environment.json")).unwrap();
    serde_json::to_value(BackupPlan::new(&environment, None, |_| "built".to_owned())).unwrap()
}

#[test]
fn host_names() {
    for good in [
        "tracker",
        "tracker.example.org",
        "10.0.0.1",
        "2001:db8::1",
        "my_host-1",
        "1st.example",
        &"a".repeat(63),
    ] {
        assert!(good.parse::<HostName>().is_ok(), "{good}");
    }
    for bad in [
        "",
        ".",
        "a..b",
        "a.",
        "-a",
        "a-",
        "a b",
        "a/b",
        "a@b",
        "a:22",
        "[::1]",
        "1.2.3",
        "1.2.3.256",
        "10",
        "é.org",
        "a\n",
        "$(x)",
        "{{x}}",
        &"a".repeat(64),
        &"a.".repeat(127),
    ] {
        assert!(bad.parse::<HostName>().is_err(), "{bad}");
    }
}

#[test]
fn paths() {
    const SHORTER: &str = "write it without `.`, `//` and the final `/`";
    for good in ["/a", "/opt/torrust", "/mnt/back up/ü", "/a/..b", "/a/.b"] {
        assert!(good.parse::<HostPath>().is_ok(), "{good}");
    }
    for (bad, fix) in [
        ("/a/", SHORTER),
        ("//a", SHORTER),
        ("/a/./b", SHORTER),
        ("/", "name a directory below `/`"),
    ] {
        assert_eq!(bad.parse::<HostPath>().unwrap_err().fix, fix);
    }
    for good in ["/k", "~/k", "~/.ssh/../k"] {
        assert!(good.parse::<KeyPath>().is_ok(), "{good}");
    }
}

#[test]
fn users() {
    for good in ["torrust", "a.b", "DOMAIN\\user", "u$"] {
        assert!(good.parse::<UserName>().is_ok(), "{good}");
    }
    for bad in ["", "-l", "a b", "a\tb", "a\u{a0}b"] {
        assert!(bad.parse::<UserName>().is_err(), "{bad}");
    }
}

#[test]
fn images() {
    let digest = format!("@sha256:{}", "0a".repeat(32));
    for good in [
        "debian",
        "debian:trixie-slim",
        "library/debian",
        "localhost/x",
        "localhost:5000/x:1",
        "registry.example.org/a/b-c_d.e:V1.0_x",
        "registry.example.org:443/a",
        "10.0.0.1:5000/a:b",
        &format!("a{digest}"),
        &format!("a:1{digest}"),
    ] {
        assert!(good.parse::<ImageReference>().is_ok(), "{good}");
    }
    for bad in [
        "",
        "-x",
        "A",
        "a/B",
        "a b",
        "a:",
        ":a",
        "a:-x",
        "a//b",
        "/a",
        "a/",
        "a:b:c",
        "a@sha256:0a",
        "a@md5:0a",
        "a$x",
        "https://example.org/a",
        "a:b/c",
        &format!("a:{}", "x".repeat(129)),
    ] {
        assert!(bad.parse::<ImageReference>().is_err(), "{bad}");
    }
}

#[test]
fn a_secret_does_not_show_itself() {
    let secret: Secret = "s3cret".parse().unwrap();
    assert_eq!(format!("{secret:?}"), "***");
}

#[test]
fn the_schema_states_the_defaults_of_the_program() {
    let program: Value = serde_json::to_value(BackupConfig::default()).unwrap();
    let schema = schema();
    let properties = schema["properties"]["backup"]["properties"]
        .as_object()
        .unwrap();
    // A host that is absent, and no extra paths, are not written, so that they do not change the
    // digest of the environment file.
    let unwritten = ["host", "extra_paths"];
    let stated = properties
        .iter()
        .filter(|(key, _)| !unwritten.contains(&key.as_str()))
        .filter_map(|(key, property)| Some((key, property.get("default")?)));
    let in_program = program
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| !value.is_null());
    assert_eq!(stated.collect::<Vec<_>>(), in_program.collect::<Vec<_>>());
    assert_eq!(properties["extra_paths"]["default"], serde_json::json!([]));
    // And it knows the same keys.
    let keys: Vec<_> = properties
        .keys()
        .filter(|key| !unwritten.contains(&key.as_str()))
        .collect();
    assert_eq!(
        keys,
        program.as_object().unwrap().keys().collect::<Vec<_>>()
    );
}

/// The default depends on what happens to the tracker, so that it stands in words.
#[test]
fn the_schema_and_the_docs_state_the_default_of_catch_up_hours() {
    let of = |case: &str| plan(case)["catch_up_hours"].as_u64().unwrap();
    // The last one stops the tracker.
    let (usual, stopping) = (of("sqlite-minimal"), of("sqlite-monitoring"));
    assert_eq!((of("mysql-minimal"), of("sqlite-sidecar")), (usual, usual));
    let schema = schema();
    let words = &schema["properties"]["backup"]["properties"]["catch_up_hours"]["description"];
    let stated = format!("Without this key: {usual}, with `quiesce` \"stop\" {stopping}.");
    assert!(words.as_str().unwrap().contains(&stated));
    let docs = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let row = format!("| `catch_up_hours` | `{usual}`, with `quiesce` `\"stop\"` `{stopping}` |");
    assert!(docs.contains(&row));
}

#[test]
fn the_schema_states_the_defaults_of_notifications_and_metrics() {
    let mut environment = example("sqlite-minimal");
    environment["backup"]["notify"] = serde_json::json!({ "ping_url": "https://hc.example.org/1" });
    environment["backup"]["metrics"] = serde_json::json!({});
    let scratch = common::Scratch::new(&environment);
    scratch.generate();
    let schema = schema();
    let keys = &schema["properties"]["backup"]["properties"];
    let on = keys["notify"]["properties"]["on"]["default"].as_str();
    let conf = scratch.read("out/backup/backup.conf");
    assert!(conf.contains(&format!("NOTIFY_ON='{}'\n", on.unwrap())));
    let directory = keys["metrics"]["properties"]["textfile_dir"]["default"].as_str();
    let conf = scratch.read("out/host/tracker-backup.conf");
    assert!(conf.contains(&format!("METRICS_DIRECTORY='{}'\n", directory.unwrap())));
}

/// The default of `quiesce` depends on the driver, so that it stands in words.
#[test]
fn the_schema_and_the_docs_state_the_default_of_quiesce_by_driver() {
    let of = |case: &str| plan(case)["quiesce"].as_str().unwrap().to_owned();
    let (file, server) = (of("sqlite-minimal"), of("mysql-minimal"));
    assert_eq!((file.as_str(), server.as_str()), ("pause", "none"));
    assert_eq!(of("sqlite-sidecar"), "none");
    let schema = schema();
    let words = &schema["properties"]["backup"]["properties"]["quiesce"]["description"];
    let stated = format!("Without this key: `{file}` for sqlite3, `{server}` for mysql.");
    assert!(words.as_str().unwrap().contains(&stated));
    let docs = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let row = format!("| `quiesce` | sqlite3: `\"{file}\"`, mysql: `\"{server}\"` |");
    assert!(docs.contains(&row));
}

#[test]
fn the_schema_states_the_defaults_outside_the_backup_section_too() {
    let schema = schema();
    let minimal = plan("sqlite-minimal");
    let ssh = &schema["properties"]["ssh_credentials"]["properties"];
    assert_eq!(ssh["username"]["default"], minimal["ssh_user"]);
    assert_eq!(ssh["port"]["default"], minimal["ssh_port"]);
    let database = &schema["properties"]["tracker"]["properties"]["core"]["properties"]["database"];
    let mut environment = example("mysql-minimal");
    environment["tracker"]["core"]["database"]
        .as_object_mut()
        .unwrap()
        .remove("port");
    let scratch = common::Scratch::new(&environment);
    scratch.generate();
    let port = database["then"]["properties"]["port"]["default"].to_string();
    assert!(
        scratch
            .read("out/backup/backup.conf")
            .contains(&format!("DB_PORT='{port}'\n"))
    );
}

#[test]
fn the_schema_describes_and_exemplifies_every_key_and_accepts_its_examples() {
    fn walk(schema: &Value, root: &Value, path: &str, seen: &mut usize) {
        for properties in [&schema["properties"], &schema["then"]["properties"]] {
            for (key, property) in properties.as_object().into_iter().flatten() {
                let path = format!("{path}/{key}");
                *seen += 1;
                let property = match property["$ref"].as_str() {
                    Some(reference) => root.pointer(&reference[1..]).unwrap(),
                    None => property,
                };
                for word in ["title", "description"] {
                    assert!(
                        property[word].as_str().is_some_and(|text| text.len() > 2),
                        "{path}: {word}"
                    );
                }
                // A section with required keys of its own is exemplified by them.
                if property.get("required").is_none() {
                    let examples = property["examples"]
                        .as_array()
                        .unwrap_or_else(|| panic!("{path}: examples"));
                    assert!(!examples.is_empty(), "{path}");
                }
                let mut alone = property.clone();
                alone["$defs"] = root["$defs"].clone();
                let validator = jsonschema::validator_for(&alone).unwrap();
                let examples = property["examples"].as_array().into_iter().flatten();
                for example in examples.chain(property.get("default")) {
                    assert!(validator.is_valid(example), "{path}: {example}");
                }
                walk(property, root, &path, seen);
            }
        }
    }
    let schema = schema();
    let mut seen = 0;
    walk(&schema, &schema, "", &mut seen);
    assert!(seen > 40);
    assert!(jsonschema::meta::is_valid(&schema));
    let validator = jsonschema::validator_for(&schema).unwrap();
    for case in CASES {
        assert!(validator.is_valid(&example(case)), "{case}");
    }
}

#[test]
fn every_key_of_the_backup_section_is_in_the_docs() {
    let docs = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let schema = schema();
    for (key, property) in schema["properties"]["backup"]["properties"]
        .as_object()
        .unwrap()
    {
        let row = docs
            .lines()
            .find(|line| line.starts_with(&format!("| `{key}` |")));
        let row = row.unwrap_or_else(|| panic!("{key}"));
        if let Some(default) = property.get("default") {
            assert!(row.contains(&format!("| `{default}` |")), "{key}");
        }
    }
}

/// In Tera an unknown name in `{% if %}` is silently false, so the plan must have every name.
#[test]
fn templates_print_loop_and_test_a_bool_of_the_plan() {
    for case in CASES {
        let plan = plan(case);
        for (path, text) in templates().chain(SENTENCES.map(|(name, text)| (name, text.into()))) {
            let mut items = BTreeMap::from([("loop", &Value::Null)]);
            for tag in text.split("{%").skip(1) {
                let tag = tag.split("%}").next().unwrap().trim_matches(['-', ' ']);
                match tag.split_whitespace().collect::<Vec<_>>()[..] {
                    ["if", "loop.first"] | ["else" | "endif" | "endfor"] | ["include", _] => {}
                    ["if", name] => match name.split_once('.') {
                        None => assert!(plan[name].is_boolean(), "{path}: {tag}"),
                        Some((list, "any")) => assert!(plan[list]["any"].is_boolean()),
                        Some((item, key)) => {
                            let mut list = items[item].as_array().unwrap().iter();
                            assert!(list.all(|one| one[key].is_boolean()), "{path}: {tag}");
                        }
                    },
                    ["for", item, "in", name] => {
                        let list = match name.split_once('.') {
                            None => &plan[name],
                            Some((name, key)) => &plan[name][key],
                        };
                        assert!(list.is_array(), "{path}: {tag}");
                        items.insert(item, list);
                    }
                    _ => panic!("{path}: {{% {tag} %}} does more than print, loop or test a bool"),
                }
            }
            for print in text.split("{{").skip(1) {
                let print = print.split("}}").next().unwrap().trim();
                let name = print.split(['|', '.', ' ']).next().unwrap();
                assert!(
                    plan.get(name).is_some() || items.contains_key(name),
                    "{path}: {print}"
                );
            }
        }
        // Absence is an empty list or a bool, never nothing.
        assert!(
            plan.as_object()
                .unwrap()
                .values()
                .all(|value| !value.is_null())
        );
    }
}

#[test]
fn every_key_of_the_plan_is_printed_or_tested_somewhere() {
    let sentences = SENTENCES.map(|(name, text)| (name, text.into()));
    let texts: String = templates()
        .chain(sentences)
        .map(|(_, text)| text.into_owned())
        .collect();
    let words: Vec<_> = texts
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    for key in plan("sqlite-minimal").as_object().unwrap().keys() {
        assert!(words.contains(&key.as_str()), "{key}");
    }
}

#[test]
fn no_module_uses_a_later_one() {
    let mut modules: Vec<_> = fs::read_dir(root().join("src"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|module| module != "cli")
        .collect();
    let mut layers: Vec<_> = LAYERS.map(str::to_owned).into();
    modules.sort();
    layers.sort();
    assert_eq!(modules, layers);
    for (at, module) in LAYERS.iter().enumerate() {
        let source = sources(module);
        let words = source.split("crate::").skip(1);
        for used in words.map(|rest| {
            rest.split(|c: char| !c.is_ascii_lowercase())
                .next()
                .unwrap()
        }) {
            let used = if used == "cli" { "main" } else { used };
            let is_earlier = LAYERS[..=at].contains(&used);
            assert!(is_earlier, "{module} uses {used}");
        }
    }
}

#[test]
fn the_domain_knows_no_engine_no_disk_and_no_command_line() {
    let end = LAYERS
        .iter()
        .position(|module| *module == "schema")
        .unwrap();
    let domain = LAYERS[..end]
        .iter()
        .filter(|module| !["shown", "json"].contains(module));
    for module in domain.chain(["plan", "explain"].iter()) {
        for foreign in [
            "tera::",
            "include_dir",
            "std::fs",
            "clap::",
            "serde_json",
            "chrono::Local",
            "Utc::now",
            "SystemTime",
        ] {
            let is_page = *module == "explain" && ["tera::", "serde_json"].contains(&foreign);
            assert!(
                is_page || !sources(module).contains(foreign),
                "{module}: {foreign}"
            );
        }
    }
    for module in LAYERS {
        let touches_the_disk = sources(module).contains("std::fs");
        let may = ["environment", "output"].contains(&module);
        assert_eq!(touches_the_disk, may, "{module}");
    }
}
