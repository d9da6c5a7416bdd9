Feature: Only who has a key may ask, and sees only what is theirs

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-AUTH-1 @ORCHD-HTTP-2
  Scenario Outline: Without a key nobody gets in: <method> <path>
    When a stranger sends <method> "<path>"
    Then the answer is 401 UNAUTHORIZED
    And the header "www-authenticate" is "Bearer"
    When an impostor sends <method> "<path>"
    Then the answer is 403 FORBIDDEN

    Examples:
      | method | path                                                  |
      | POST   | /v1/tasks                                             |
      | GET    | /v1/tasks                                             |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000        |
      | GET    | /v1/tasks/00000000-0000-4000-8000-000000000000/stream |
      | POST   | /v1/tasks/00000000-0000-4000-8000-000000000000/cancel |
      | GET    | /v1/capabilities                                      |
      | GET    | /v1/pools                                             |
      | GET    | /v1/pools/words/health                                |
      | GET    | /v1/pools/words/logs                                  |
      | GET    | /v1/nothing                                           |

  @ORCHD-AUTH-1
  Scenario Outline: The key is taken as <header>
    When a stranger asks for "/v1/pools" with the header "<header>" "<value>"
    Then the answer is <status>

    Examples:
      | header        | value                           | status |
      | X-API-Key     | alice-test-key-5f1c2d3e         | 200    |
      | Authorization | Bearer alice-test-key-5f1c2d3e  | 200    |
      | authorization | bearer alice-test-key-5f1c2d3e  | 200    |
      | Authorization | Basic alice-test-key-5f1c2d3e   | 401    |
      | Authorization | Bearer alice-test-key-5f1c2d3   | 403    |
      | X-API-Key     | ALICE-TEST-KEY-5F1C2D3E         | 403    |

  @ORCHD-AUTH-4 @ORCHD-DOCS-1 @ORCHD-DOCS-2 @ORCHD-OBS-2 @ORCHD-OBS-3
  Scenario Outline: Monitoring and documentation need no key: <path>
    Given the pool "words" is ready
    When a stranger asks for "<path>"
    Then the answer is 200
    And the answer is of type "<type>"

    Examples:
      | path       | type             |
      | /metrics   | text/plain       |
      | /healthz   | application/json |
      | /readyz    | application/json |
      | /docs      | text/html        |
      | /docs/json | application/json |

  @ORCHD-AUTH-2
  Scenario: Another key's task does not exist
    When alice submits "secret":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    And bob reads "secret"
    Then the answer is 404 NOT_FOUND
    When bob watches "secret" as "spy"
    Then the answer is 404 NOT_FOUND
    When bob cancels "secret"
    Then the answer is 404 NOT_FOUND
    When bob asks for "/v1/tasks"
    Then the answer lists nothing
    And "secret" is done

  @ORCHD-AUTH-2 @ORCHD-TASK-3
  Scenario: Another key cannot take over a task by its id, nor learn that it exists
    When alice submits "secret":
      | prompt     | Once upon a time                     |
      | max_tokens | 2                                    |
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
    And bob submits "stolen":
      | prompt     | Once upon a time                     |
      | max_tokens | 2                                    |
      | task_id    | 0b9f2f4e-6a1c-4d57-9a44-0c1f5f1c2d3e |
    Then the answer is 409 CONFLICT

  @ORCHD-AUTH-2
  Scenario: The operator sees and controls everybody's tasks
    When alice submits "hers":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    And bob submits "his":
      | prompt     | Once upon a time |
      | max_tokens | 2                |
    And the operator asks for "/v1/tasks"
    Then the answer lists "his", "hers"
    When the operator watches "hers" as "look"
    Then the stream "look" ends with end
    When the operator cancels "his"
    Then the answer is 204

  @ORCHD-HTTP-1
  Scenario Outline: A correlation id comes back wherever the request ends: <method> <path>
    When alice sends <method> "<path>" with the header "X-Correlation-Id" "trace:4711_a.b-c"
    Then the answer is <status>
    And the header "x-correlation-id" is "trace:4711_a.b-c"

    Examples:
      | method | path              | status |
      | GET    | /v1/pools         | 200    |
      | GET    | /v1/tasks/7       | 400    |
      | GET    | /v1/nothing       | 404    |
      | DELETE | /v1/pools         | 405    |
      | GET    | /metrics          | 200    |
      | GET    | /docs             | 200    |
      | POST   | /v1/tasks         | 400    |
      | HEAD   | /healthz          | 200    |

  @ORCHD-HTTP-1
  Scenario Outline: A correlation id that is malformed is replaced: <given>
    When alice sends GET "/v1/pools" with the header "X-Correlation-Id" "<given>"
    Then the answer is 200
    And the header "x-correlation-id" is a new UUID

    Examples:
      | given       |
      | with blanks |
      | sémi        |
      | a/b         |
      | 0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 |

  @ORCHD-HTTP-1 @ORCHD-TASK-9
  Scenario: A stream carries its correlation id and its task
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 1                |
    Then the answer is 200
    And the header "x-task-id" is the id of "story"

  @ORCHD-HTTP-5
  Scenario: A body that is too large is refused before it is read
    Given the setting "limits.body_bytes" is 2048
    When alice submits a prompt of 2000 words as "huge" with max_tokens 1
    Then the answer is 413 PAYLOAD_TOO_LARGE
    And the message tells "2048 bytes"

  @ORCHD-OBS-4
  Scenario: Keys, prompts and tokens never reach the log
    Given the daemon's log is kept
    When alice submits and streams "story":
      | prompt        | xylophone-prompt zanzibar   |
      | max_tokens    | 8                           |
      | metadata      | {"note":"marmalade-label"}  |
    And the stream "story" ends with end
    And an impostor asks for "/v1/pools"
    And alice submits "broken":
      | prompt      | xylophone-prompt |
      | max_tokenz  | 8                |
    And alice submits the body:
      """
      {"prompt":"xylophone-prompt
      """
    And alice sends GET "/v1/tasks?token=xylophone-prompt"
    Then the log does not contain:
      | xylophone                |
      | zanzibar                 |
      | marmalade                |
      | alice-test-key-5f1c2d3e  |
      | impostor-test-key-000000 |
    And the log does not contain what "story" said
