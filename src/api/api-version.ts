/**
 * The version of the HTTP contract: what `GET /v1/capabilities` answers as api_version and what both files in
 * contracts/openapi/ carry as info.version. test/contract/openapi-valid.test.ts holds the three together.
 */
export const apiVersion = "0.1.0";
