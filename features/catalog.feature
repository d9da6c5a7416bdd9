Feature: The catalog knows models, fetches them and says whether they may be used

  Background:
    Given a pool "words" with 1 slot
    And a server of models

  @ORCHD-MODEL-1 @ORCHD-AUTH-2
  Scenario: Entries are for admins
    When alice asks for "/v1/catalog/models"
    Then the answer is 403 FORBIDDEN
    When the operator enters the model "small" that lies there
    Then the answer is 201
    And the answer says:
      | id      | small  |
      | state   | Active |
      | present | false  |
    When the operator enters the model "small" that lies there
    Then the answer is 200
    When the operator enters the model "small" with the reference "other.gguf"
    Then the answer is 409 CONFLICT
    When the operator enters the model "passwords" with the reference "file:/etc/passwd"
    Then the answer is 400 INVALID_PARAMS
    When the operator asks for "/v1/catalog/models?tag=none"
    Then the answer is 200
    And the answer says:
      | models      | []   |
      | next_cursor | null |
    When the operator sends DELETE "/v1/catalog/models/small"
    Then the answer is 204
    When the operator asks for "/v1/catalog/models/small"
    Then the answer is 404 NOT_FOUND

  @ORCHD-MODEL-2 @ORCHD-MODEL-4 @ORCHD-OBS-1
  Scenario: A model is fetched over a connection that breaks, and is right
    Given the server breaks every connection after 300000 bytes
    When the operator has the model "small" fetched, with its digest
    Then the answer is 201
    And the model "small" comes to rest
    And the answer says:
      | present       | true |
      | trusted       | true |
      | fetch_problem | null |
    And its verification is "given"
    And the server sent at most 150 percent of the model
    And the metrics are:
      | catalog_verifications_total{result="done",reason="given",engine="llamacpp"} | 1 |

  @ORCHD-MODEL-2 @ORCHD-MODEL-4
  Scenario: A model with another digest does not appear
    When the operator has the model "small" fetched, with the digest of another
    Then the model "small" comes to rest
    And the answer says:
      | present | false |
    And its problem tells "thrown away"

  @ORCHD-MODEL-2 @ORCHD-DUR-2
  Scenario: A fetch goes on by itself after the daemon was killed, with what had come
    Given the daemon runs as a process of its own
    And the server sends nothing behind the first 1600000 bytes
    When the operator has the model "small" fetched, with its digest
    And the model "small" has 1500000 bytes
    And the daemon is killed
    And the server sends everything
    And the daemon starts again
    Then the model "small" comes to rest
    And its verification is "given"
    And the server sent at most 150 percent of the model

  @ORCHD-MODEL-2
  Scenario: A fetch is called off, and goes on when it is asked for again
    Given the server sends nothing behind the first 1600000 bytes
    When the operator has the model "small" fetched, with its digest
    And the model "small" has 1500000 bytes
    And the operator sends DELETE "/v1/catalog/models/small/fetch"
    Then the answer is 200
    And the model "small" comes to rest
    And the answer says:
      | present      | false |
      | verification | null  |
    When the server sends everything
    And the operator sends POST "/v1/catalog/models/small/fetch"
    Then the answer is 202
    And the model "small" comes to rest
    And its verification is "given"
    And the server sent at most 105 percent of the model

  @ORCHD-MODEL-3
  Scenario: Nothing is asked of a host that is not listed, and nothing at all where fetching is off
    When the operator enters and fetches "small" from "https://models.example/m.gguf"
    Then the answer is 403 FORBIDDEN
    And the message tells "allow_hosts"

  @ORCHD-MODEL-3
  Scenario: The switch
    Given nothing is fetched
    When the operator has the model "small" fetched, with its digest
    Then the answer is 403 FORBIDDEN
    And the message tells "models.fetch.enabled is false"

  @ORCHD-MODEL-4
  Scenario: A file that was damaged is found
    Given the file "local.gguf" in the models folder
    When the operator enters the model "local" with the digest of its file
    And the operator verifies "local"
    Then the model "local" comes to rest
    And its verification is "given"
    When the file "local.gguf" in the models folder is damaged
    And the operator verifies "local"
    Then the model "local" comes to rest
    And its verification is "digest"
    And the answer says:
      | trusted | false |

  @ORCHD-MODEL-5 @ORCHD-OBS-1
  Scenario: A retired model
    Given the file "local.gguf" in the models folder
    When the operator enters the model "local" with the digest of its file
    And the operator retires "local"
    Then the answer is 200
    And the answer says:
      | state | Retired |
    And the metrics are:
      | model_state{model_id="local",state="Retired"} | 1 |
    When the operator takes "local" back
    Then the answer says:
      | state           | Active |
      | retired_from_ms | null   |

  @ORCHD-MODEL-1
  Scenario: The catalog outlives the daemon
    When the operator enters the model "small" that lies there
    And the daemon is stopped
    And the operator asks for "/v1/catalog/models/small"
    Then the answer is 200
