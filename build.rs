//! `include_dir!` does not notice a new template on an incremental build; Cargo does when told.

fn main() {
    println!("cargo:rerun-if-changed=bundle-templates");
}
