//! stub
use utoipa::openapi::OpenApi;
pub fn render(_: &OpenApi) -> String {
    String::new()
}
pub fn policy() -> &'static str {
    "default-src 'none'"
}
