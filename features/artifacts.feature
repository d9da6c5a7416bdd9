Feature: Artifacts are kept under the digest of what they say

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-ART-1
  Scenario: The same document is the same artifact, and a client that has it is told so
    When alice stores the artifact:
      | kind    | plan  |
      | content | hello |
    Then the answer is 201
    And the answer says:
      | kind   | plan |
      | parent | null |
    When alice stores the artifact:
      | content | hello |
      | kind    | plan  |
    Then the answer is 200
    When alice reads the artifact
    Then the answer is 200
    And the answer says:
      | content | hello |
    When alice reads the artifact that she has
    Then the answer is 304

  @ORCHD-ART-1 @ORCHD-AUTH-2
  Scenario: Another key's artifact is none
    When alice stores the artifact:
      | kind    | other  |
      | content | secret |
    And bob reads the artifact
    Then the answer is 404 NOT_FOUND
    When the operator reads the artifact
    Then the answer is 200

  @ORCHD-ART-3
  Scenario: A damaged artifact is told and not given out
    When alice stores the artifact:
      | kind    | other               |
      | content | what was once stored |
    And the file of the artifact is damaged
    And alice reads the artifact
    Then the answer is 500 UNTRUSTED_ARTIFACT
    When alice reads the artifact
    Then the answer is 404 NOT_FOUND

  @ORCHD-ART-2 @ORCHD-OBS-1
  Scenario: Bytes go in on their own and are referred to by their digest
    When alice sends the attachment "any bytes at all"
    Then the answer is 201
    And the answer says:
      | size_bytes | 16 |
    And the metrics are:
      | artifact_store_bytes | 16 |
    When alice stores an artifact with the attachment
    Then the answer is 201
    When alice reads the attachment
    Then the answer is 200
    And the text is "any bytes at all"
    When bob reads the attachment
    Then the answer is 404 NOT_FOUND

  @ORCHD-ART-4
  Scenario: Lists by kind and words
    When alice stores the artifact:
      | kind    | plan           |
      | content | sail to Ithaca |
    And alice stores the artifact:
      | kind    | summary       |
      | content | came to Troia |
    And alice sends GET "/v1/artifacts?kind=plan"
    Then the answer says:
      | artifacts.0.kind | plan |
      | next_cursor      | null |
    When alice sends GET "/v1/artifacts?q=ITHACA"
    Then the answer says:
      | artifacts.0.kind | plan |
    When alice sends GET "/v1/artifacts?kind=poem"
    Then the answer is 400 INVALID_PARAMS
